"""The reader of the present form of the configuration: that of the original since 2022, and what Keswick adds to it.

Older forms, put in its shape, are read here as well. They are less strict, and so are the dialects that such files
spoke: what was valid then must start a server.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from itertools import chain

from keswick import policy
from keswick.config import address, duration, level, stores
from keswick.config.document import Section, Value, nearest, shortened
from keswick.config.limits import RANGES, is_duration
from keswick.config.model import (
    API,
    PRESENT,
    TLS,
    Address,
    Cache,
    Config,
    Log,
    Metrics,
    Policy,
    Proxy,
    ProxyProtocol,
    Stop,
)
from keswick.names import NAME_RULE, is_name

DIALECTS = ("2021", "2022", "2023", PRESENT)
ZERO = re.compile("[-+]?0")
"""A duration that needs no unit, as durations were read until 2023."""

_API_KEY = "kes:v1:"  # the beginning of a private key; never to be shown
_HEADER = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+")
_TAKEN_HEADERS = frozenset(
    ["host", "connection", "content-length", "transfer-encoding", "x-forwarded-for", "forwarded"]
)
"""What HTTP itself needs, and what the addresses of clients stand in."""
_WIDEST = {4: 8, 6: 7}
"""Bits of the widest networks that one operator has, by IP version: 10.0.0.0/8 and fc00::/7."""
_SWITCH = {"on": True, "off": False}
_BOOLEAN = _SWITCH | {"true": True, "false": False, "yes": True, "no": False}
_FORMER_APIS = re.compile(
    r"/v1/(?:key/bulk/decrypt/"
    r"|policy/(?:write|delete|assign)/|identity/(?:assign|forget|delete)/"
    r"|log/(?:log/)?(?:audit|error)/trace"
    r"|(?:enclave|secret)/(?:create|describe|read|delete|list)/|sys/seal)"
)


@dataclass(frozen=True, slots=True)
class _Rules:
    """By which rules a file is read: those of its form, and those of its dialect. `by_flags`: the keys that the command
    line gives."""

    form: str
    dialect: str
    by_flags: Collection[str]

    def may_be_left_out(self, key: str) -> bool:
        """Whether a flag stands in for the key, or may, as in the older forms."""
        return self.form != PRESENT or key in self.by_flags

    @property
    def logs_are_switches(self) -> bool:
        return self.form != PRESENT

    @property
    def is_lenient(self) -> bool:
        """Whether names and identities are free, and `0` is a duration: as before October 2023."""
        return self.dialect != PRESENT


def read(
    document: Section,
    apis: Mapping[str, bool],
    form: str = PRESENT,
    dialect: str | None = None,
    by_flags: Collection[str] = (),
) -> Config:
    """`apis`: the paths of the routes, and whether each may be opened to callers without a certificate. `form`: what
    was put in this shape. `dialect`: what that form speaks; the present one names it itself. `by_flags`: what need not
    be there, because the command line gives it.

    Raises ConfigError.
    """
    document.only(
        *("version", "compatibility", "runtime_policies", "address", "admin", "tls", "api", "policy", "cache", "log"),
        *("keys", "keystore", "metrics", "proxy_protocol", "stop", "limits"),
    )
    _check_version(document)
    rules = _Rules(form, dialect or _dialect(document), by_flags)
    admin = _admin(document.section("admin").only("identity"), rules)
    tls = _tls(document.section("tls"), admin, rules)
    listen = _listen(document)
    runtime_policies = _switch(document, "runtime_policies", _SWITCH)
    return Config(
        admin=admin,
        tls=tls,
        api=_apis(document.section("api"), apis, rules),
        policies=_policies(document.section("policy"), admin, tls.proxy, rules),
        cache=_cache(document.section("cache").only("expiry").section("expiry"), rules),
        log=_log(document.section("log"), rules),
        keys=_keys(document),
        keystore=stores.read(document.section("keystore")),
        address=listen,
        metrics=_metrics(document, listen, rules) if "metrics" in document else None,
        proxy_protocol=_proxy_protocol(document, rules),
        stop=_stop(document.section("stop"), rules),
        limits=_limits(document.section("limits"), rules),
        form=form,
        dialect=rules.dialect,
        runtime_policies=rules.is_lenient if runtime_policies is None else runtime_policies,
        warnings=tuple(document.source.warnings),
        unsaid=tuple(_unsaid(document)),
    )


def _unsaid(document: Section) -> Iterator[str]:
    for name, key in (("", "address"), ("tls", "auth"), ("log", "audit")):
        if (document.section(name) if name else document).is_blank(key):
            yield f"{name}.{key}" if name else key


def _dialect(document: Section) -> str:
    value = document.value("compatibility")
    if value is None or not value.text:
        return PRESENT
    if value.text not in DIALECTS:
        *most, last = DIALECTS
        raise value.error(f"{value.key!r} must be {', '.join(most)} or {last}, not {value.shown}")
    return value.text


def _check_version(document: Section) -> None:
    version = document.value("version", expand=False)
    if version is not None and version.text != "v1":
        raise version.error(f"unknown version {version.shown} of the configuration; the only one is 'v1'")


def _listen(document: Section) -> Address:
    value = document.value("address")
    return _address(value) if value is not None and value.text else Address()


def _admin(section: Section, rules: _Rules) -> str:
    if rules.may_be_left_out("admin.identity") and section.is_blank("identity"):
        return ""
    identity = section.required("identity", "the identity of the administrator, or a word such as 'disabled' for none")
    _check_identity(identity)
    return identity.text


def _tls(section: Section, admin: str, rules: _Rules) -> TLS:
    section.only("key", "cert", "password", "ca", "auth", "proxy")
    auth = _switch(section, "auth", _SWITCH)
    return TLS(
        key=_file(section, "key", "the path of the server's private key", rules),
        cert=_file(section, "cert", "the path of the server's certificate", rules),
        password=_optional(section, "password"),
        ca=_optional(section, "ca"),
        auth=True if auth is None and rules.is_lenient else auth,
        auth_implied=auth is None and rules.is_lenient,
        proxy=_proxy(section.section("proxy").only("identities", "header", "admin"), admin, rules),
    )


def _file(section: Section, key: str, hint: str, rules: _Rules) -> str:
    if rules.may_be_left_out(f"tls.{key}") and section.is_blank(key):
        return ""
    return section.required(key, hint).text


def _proxy(section: Section, admin: str, rules: _Rules) -> Proxy:
    identities = _identities(section, rules)
    header = section.section("header").only("cert")
    for identity in identities:
        if not identity.text:
            raise identity.error("an identity in 'tls.proxy.identities' is empty")
        _check_identity(identity)
        if identity.text == admin:
            raise identity.error(f"the identity {identity.shown} in 'tls.proxy.identities' is the admin already")
    forwarded_admin = _switch(section, "admin", _SWITCH)
    forwarded_admin = True if forwarded_admin is None else forwarded_admin
    if not identities:
        return Proxy(header=_optional(header, "cert") or "", admin=forwarded_admin)
    name = header.required("cert", "name the header in which the proxies forward certificates")
    if _HEADER.fullmatch(name.text) is None:
        raise name.error("'tls.proxy.header.cert' is not the name of a header, such as 'X-Tls-Client-Cert'")
    if name.text.lower() in _TAKEN_HEADERS:
        raise name.error(
            f"'tls.proxy.header.cert' cannot be {name.shown}, which means something else in every request; write for "
            "example 'X-Tls-Client-Cert'"
        )
    return Proxy(tuple(identity.text for identity in identities), name.text, forwarded_admin)


def _apis(section: Section, known: Mapping[str, bool], rules: _Rules) -> dict[str, API]:
    apis = {}
    for path in section:
        if path not in known:
            if not _FORMER_APIS.fullmatch(path):
                raise section.error_at(path, f"unknown path {shortened(path)!r} in 'api'{nearest(path, known)}")
            section.warn_at(path, f"the path {path!r} in 'api' is of older releases; it has no effect")
        settings = section.section(path).only("skip_auth", "timeout")
        skip_auth = _switch(settings, "skip_auth", _BOOLEAN) or False
        timeout = _duration(settings, "timeout", 0, rules)
        if skip_auth and not known.get(path, True):
            allowed = ", ".join(sorted(other for other, may_skip in known.items() if may_skip))
            raise settings.error_at("skip_auth", f"'skip_auth' cannot be used for {path!r}, only for {allowed}")
        if path in known:
            apis[path] = API(skip_auth, timeout or None)
    return apis


def _policies(section: Section, admin: str, proxy: Proxy, rules: _Rules) -> dict[str, Policy]:
    policies = {}
    assigned: dict[str, str] = {}
    for name in section:
        if not is_name(name) and not (name and rules.is_lenient):
            raise section.error_at(name, f"{shortened(name)!r} is not the name of a policy: a name has {NAME_RULE}")
        one = section.section(name).only("allow", "deny", "identities")
        allow, deny, identities = (_patterns(one, "allow"), _patterns(one, "deny"), _identities(one, rules))
        for identity in identities:
            _check_identity(identity)
            if not is_name(identity.text) and not rules.is_lenient:
                raise identity.error(f"{identity.shown} in the policy {name!r} is not an identity: it has {NAME_RULE}")
            if identity.text == admin:
                raise identity.error(f"the policy {name!r} contains the admin, who needs no policy: {identity.shown}")
            if identity.text in proxy.identities:
                raise identity.error(f"the policy {name!r} contains a TLS proxy, which has no rights: {identity.shown}")
            if identity.text in assigned:
                other = assigned[identity.text]
                where = f"the policies {other!r} and {name!r}" if other != name else f"the policy {name!r} twice"
                raise identity.error(f"an identity can have one policy only; {identity.shown} stands in {where}")
            assigned[identity.text] = name
        policies[name] = Policy(allow, deny, tuple(identity.text for identity in identities))
    return policies


def _identities(section: Section, rules: _Rules) -> list[Value]:
    """Of these files those that are not empty; samples had empty ones in the place of what an operator was to add."""
    identities = section.values("identities", blank=rules.is_lenient)
    if rules.is_lenient:
        for identity in identities:
            if not identity.text:
                identity.source.warn(identity.line, f"an empty identity in {identity.key!r} is passed over")
        identities = [identity for identity in identities if identity.text]
    return identities


def _patterns(section: Section, key: str) -> tuple[str, ...]:
    rules = section.values(key, expand=False)
    for rule in rules:
        try:
            policy.check(rule.text)
        except policy.PatternError as failure:
            raise rule.error(f"{rule.key!r}: {failure}") from None
        if rule.text[:1] not in ("/", "*", "[", "\\"):
            text = f"the rule {rule.shown} in {rule.key!r} matches nothing, because every path begins with '/'"
            rule.source.warn(rule.line, text)
    return tuple(rule.text for rule in rules)


def _cache(section: Section, rules: _Rules) -> Cache:
    section.only("any", "unused", "offline")
    default = Cache()
    return Cache(
        any=_duration(section, "any", default.any, rules),
        unused=_duration(section, "unused", default.unused, rules),
        offline=_duration(section, "offline", default.offline, rules),
    )


def _log(section: Section, rules: _Rules) -> Log:
    section.only("error", "audit", "audit_skip", "audit_required")
    default = Log()
    skip = section.values("audit_skip")
    for path in skip:
        if not path.text.startswith("/"):
            raise path.error("an entry of 'log.audit_skip' must be a path that begins with '/', such as '/v1/ready'")
    audit = _level(section, "audit", default.audit, rules)
    required = _switch(section, "audit_required", _SWITCH) or False
    if required and audit > 0:
        raise section.error_at("audit_required", "'log.audit_required' needs an audit log: write 'audit: on', too")
    return Log(
        error=_level(section, "error", default.error, rules),
        audit=audit,
        audit_skip=tuple(path.text for path in skip),
        audit_required=required,
        audit_unit="ns" if rules.is_lenient else "ms",
    )


def _keys(document: Section) -> tuple[str, ...]:
    lines: dict[str, int | None] = {}
    for section in document.sections("keys"):
        name = section.only("name").required("name")
        if not is_name(name.text):
            raise name.error(f"{name.shown} is not the name of a key: a name has {NAME_RULE}")
        if name.text in lines:
            raise name.error(f"the key {name.shown} stands already in line {lines[name.text]}")
        lines[name.text] = name.line
    return tuple(lines)


def _metrics(document: Section, listen: Address, rules: _Rules) -> Metrics:
    section = document.section("metrics").only("address", "tls", "proxy_protocol")
    value = section.required("address", "write for example 'address: 127.0.0.1:7374'")
    own = _address(value)
    if own == listen:
        raise value.error("'metrics.address' must differ from 'address'; choose another port")
    return Metrics(own, _switch(section, "tls", _SWITCH) or False, _proxy_protocol(section, rules))


def _proxy_protocol(around: Section, rules: _Rules) -> ProxyProtocol | None:
    if "proxy_protocol" not in around:
        return None
    section = around.section("proxy_protocol").only("from", "timeout")
    networks = [_network(value) for value in section.values("from")]
    if not networks:
        raise section.error(f"'{section.key}.from' is missing: list the networks of the proxies, such as '10.0.0.0/8'")
    for network in _united(networks):
        if network.prefixlen < _WIDEST[network.version]:
            what = "wider than any network of one operator" if network.prefixlen else "every address"
            raise section.error_at(
                "from",
                f"'{section.key}.from' covers '{network}', which is {what}: whoever connects could then claim any; "
                "list the networks of the proxies alone",
            )
    default = ProxyProtocol(())
    return ProxyProtocol(
        networks=tuple(str(network) for network in networks),
        timeout=_between(section, "timeout", default.timeout, 0.1, 60.0, rules),
    )


def _united(networks: Collection[IPv4Network | IPv6Network]) -> Iterator[IPv4Network | IPv6Network]:
    """The same addresses in as few networks as possible, for halves make a whole."""
    return chain(
        collapse_addresses(network for network in networks if isinstance(network, IPv4Network)),
        collapse_addresses(network for network in networks if isinstance(network, IPv6Network)),
    )


def _network(value: Value) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(value.text, strict=False)
    except ValueError:
        raise value.error(
            f"{value.key!r} holds {value.shown}, which is no network; write for example '10.0.0.0/8', or an address"
        ) from None
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None:
        raise value.error(f"{value.key!r} holds {value.shown}; write an IPv4 network as such, as in '10.0.0.0/8'")
    address = value.text.partition("/")[0]
    if ip_address(address) != network.network_address:
        raise value.error(f"{value.key!r} holds {value.shown}, which lies within a network; write '{network}'")
    return network


def _stop(section: Section, rules: _Rules) -> Stop:
    section.only("delay", "linger", "drain")
    default = Stop()
    return Stop(
        delay=_between(section, "delay", default.delay, 0.0, 3600.0, rules),
        linger=_between(section, "linger", default.linger, 0.0, 3600.0, rules),
        drain=_between(section, "drain", default.drain, 0.0, 3600.0, rules),
    )


def _limits(section: Section, rules: _Rules) -> dict[str, float]:
    section.only(*RANGES)
    return {name: _limit(section, name, rules) for name in RANGES if name in section}


def _limit(section: Section, name: str, rules: _Rules) -> float:
    least, most = RANGES[name]
    if is_duration(name):
        return _between(section, name, least, least, most, rules)
    value = section.required(name)
    if re.fullmatch("[0-9]{1,15}", value.text) is None or not least <= int(value.text) <= most:
        raise value.error(f"{value.key!r} must be a whole number from {least:.0f} to {most:.0f}, not {value.shown}")
    return int(value.text)


def _check_identity(identity: Value) -> None:
    """An API key is refused. What no client ever has is valid, as any name is, but most likely a mistake."""
    if identity.text.startswith(_API_KEY):
        raise identity.error(
            f"{identity.key!r} holds an API key, which is a secret; write its identity, as 'kes identity of' prints it"
        )
    if identity.text != identity.text.lower() and re.fullmatch("[0-9A-Fa-f]{64}", identity.text):
        identity.source.warn(
            identity.line,
            f"{identity.key!r} holds {identity.shown}, which has upper-case letters; identities are lower-case: it "
            "matches nobody",
        )


def _optional(section: Section, key: str) -> str | None:
    value = section.value(key)
    return value.text or None if value is not None else None


def _switch(section: Section, key: str, words: Mapping[str, bool]) -> bool | None:
    """None when nothing is said."""
    value = section.value(key)
    if value is None or not value.text:
        return None
    if value.text.lower() not in words:
        *most, last = words
        raise value.error(f"{value.key!r} must be {', '.join(most)} or {last}, not {value.shown}")
    return words[value.text.lower()]


def _address(value: Value) -> Address:
    try:
        return address.parse(value.text)
    except ValueError as failure:
        raise value.error(f"{value.key!r} is {value.shown}: {failure}") from None


def _duration(section: Section, key: str, default: float, rules: _Rules) -> float:
    value = section.value(key)
    if value is None:
        return default
    if rules.is_lenient and ZERO.fullmatch(value.text):
        return 0.0
    try:
        seconds = duration.parse(value.text)
    except ValueError as failure:
        raise value.error(f"{value.key!r} is {value.shown}: {failure}") from None
    if seconds < 0:
        raise value.error(f"{value.key!r} is {value.shown}, but cannot be negative; to switch it off, write '0s'")
    return seconds


def _between(section: Section, key: str, default: float, least: float, most: float, rules: _Rules) -> float:
    seconds = _duration(section, key, default, rules)
    if not least <= seconds <= most:
        value = section.required(key)
        bounds = f"from '{duration.format(least)}' to '{duration.format(most)}'"
        raise value.error(f"{value.key!r} must be a duration {bounds}, not {value.shown}")
    return seconds


def _level(section: Section, key: str, default: int, rules: _Rules) -> int:
    value = section.value(key)
    if value is None or not value.text.strip():
        return default
    if rules.logs_are_switches and value.text.strip().lower() not in _SWITCH:
        raise value.error(f"{value.key!r} must be on or off in this form, not {value.shown}")
    try:
        return level.parse(value.text)
    except ValueError as failure:
        raise value.error(f"{value.key!r} is {value.shown}: {failure}") from None
