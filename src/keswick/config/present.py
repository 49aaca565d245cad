"""The reader of the present form of the configuration: that of the original since 2023, and what Keswick adds to it."""

import re
from collections.abc import Mapping

from keswick import policy
from keswick.config import address, duration, level, stores
from keswick.config.document import Section, Value, nearest, shortened
from keswick.config.model import API, TLS, Address, Cache, Config, Log, Metrics, Policy, Proxy
from keswick.names import NAME_RULE, is_name

_API_KEY = "kes:v1:"  # the beginning of a private key; never to be shown
_HEADER = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]+")
_SWITCH = {"on": True, "off": False}
_BOOLEAN = _SWITCH | {"true": True, "false": False, "yes": True, "no": False}
_FORMER_APIS = re.compile(
    r"/v1/(?:key/bulk/decrypt/"
    r"|policy/(?:write|delete|assign)/|identity/(?:assign|forget|delete)/"
    r"|log/(?:log/)?(?:audit|error)/trace"
    r"|(?:enclave|secret)/(?:create|describe|read|delete|list)/|sys/seal)"
)


def read(document: Section, apis: Mapping[str, bool]) -> Config:
    """`apis`: the paths of the routes, and whether each may be opened to callers without a certificate.

    Raises ConfigError.
    """
    document.only(
        *("version", "address", "admin", "tls", "api", "policy", "cache", "log", "keys", "keystore", "metrics"),
        renamed={"root": "'admin: {identity: …}'"},
    )
    _check_version(document)
    admin = _admin(document.section("admin").only("identity"))
    tls = _tls(document.section("tls"), admin)
    listen = _listen(document)
    return Config(
        admin=admin,
        tls=tls,
        api=_apis(document.section("api"), apis),
        policies=_policies(document.section("policy"), admin, tls.proxy),
        cache=_cache(document.section("cache").only("expiry").section("expiry")),
        log=_log(document.section("log")),
        keys=_keys(document),
        keystore=stores.read(document.section("keystore")),
        address=listen,
        metrics=_metrics(document, listen) if "metrics" in document else None,
        warnings=tuple(document.source.warnings),
    )


def _check_version(document: Section) -> None:
    version = document.value("version", expand=False)
    if version is not None and version.text != "v1":
        raise version.error(f"unknown version {version.shown} of the configuration; the only one is 'v1'")


def _listen(document: Section) -> Address:
    value = document.value("address")
    return _address(value) if value is not None and value.text else Address()


def _admin(section: Section) -> str:
    identity = section.required("identity", "the identity of the administrator, or a word such as 'disabled' for none")
    _refuse_api_key(identity)
    if re.fullmatch("[0-9A-Fa-f]{64}", identity.text) and identity.text != identity.text.lower():
        section.warn_at(
            "identity", "'admin.identity' has upper-case letters; identities are lower-case: it matches nobody"
        )
    return identity.text


def _tls(section: Section, admin: str) -> TLS:
    section.only("key", "cert", "password", "ca", "auth", "proxy")
    return TLS(
        key=section.required("key", "the path of the server's private key").text,
        cert=section.required("cert", "the path of the server's certificate").text,
        password=_optional(section, "password"),
        ca=_optional(section, "ca"),
        auth=_switch(section, "auth", _SWITCH),
        proxy=_proxy(section.section("proxy").only("identities", "header"), admin),
    )


def _proxy(section: Section, admin: str) -> Proxy:
    identities = section.values("identities")
    header = section.section("header").only("cert")
    for identity in identities:
        if not identity.text:
            raise identity.error("an identity in 'tls.proxy.identities' is empty")
        _refuse_api_key(identity)
        if identity.text == admin:
            raise identity.error(f"the identity {identity.shown} in 'tls.proxy.identities' is the admin already")
    if not identities:
        return Proxy(header=_optional(header, "cert") or "")
    name = header.required("cert", "name the header in which the proxies forward certificates")
    if _HEADER.fullmatch(name.text) is None:
        raise name.error("'tls.proxy.header.cert' is not the name of a header, such as 'X-Tls-Client-Cert'")
    return Proxy(tuple(identity.text for identity in identities), name.text)


def _apis(section: Section, known: Mapping[str, bool]) -> dict[str, API]:
    apis = {}
    for path in section:
        if path not in known:
            if not _FORMER_APIS.fullmatch(path):
                raise section.error_at(path, f"unknown path {shortened(path)!r} in 'api'{nearest(path, known)}")
            section.warn_at(path, f"the path {path!r} in 'api' is of older releases; it has no effect")
        settings = section.section(path).only("skip_auth", "timeout")
        skip_auth = _switch(settings, "skip_auth", _BOOLEAN) or False
        timeout = _duration(settings, "timeout", 0)
        if skip_auth and not known.get(path, True):
            allowed = ", ".join(sorted(other for other, may_skip in known.items() if may_skip))
            raise settings.error_at("skip_auth", f"'skip_auth' cannot be used for {path!r}, only for {allowed}")
        if path in known:
            apis[path] = API(skip_auth, timeout or None)
    return apis


def _policies(section: Section, admin: str, proxy: Proxy) -> dict[str, Policy]:
    policies = {}
    assigned: dict[str, str] = {}
    for name in section:
        if not is_name(name):
            raise section.error_at(name, f"{shortened(name)!r} is not the name of a policy: a name has {NAME_RULE}")
        rules = section.section(name).only("allow", "deny", "identities", renamed={"paths": "'allow'"})
        allow, deny, identities = (_rules(rules, "allow"), _rules(rules, "deny"), rules.values("identities"))
        for identity in identities:
            _refuse_api_key(identity)
            if not is_name(identity.text):
                raise identity.error(f"{identity.shown} in the policy {name!r} is not an identity: it has {NAME_RULE}")
            if identity.text == admin:
                raise identity.error(f"the policy {name!r} contains the admin, who needs no policy: {identity.shown}")
            if identity.text in proxy.identities:
                raise identity.error(f"the policy {name!r} contains a TLS proxy, which has no rights: {identity.shown}")
            if identity.text in assigned:
                both = f"the policies {assigned[identity.text]!r} and {name!r}"
                raise identity.error(f"an identity can have one policy only; {identity.shown} stands in {both}")
            assigned[identity.text] = name
        policies[name] = Policy(allow, deny, tuple(identity.text for identity in identities))
    return policies


def _rules(section: Section, key: str) -> tuple[str, ...]:
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


def _cache(section: Section) -> Cache:
    section.only("any", "unused", "offline", renamed={"all": "'any'"})
    default = Cache()
    return Cache(
        any=_duration(section, "any", default.any),
        unused=_duration(section, "unused", default.unused),
        offline=_duration(section, "offline", default.offline),
    )


def _log(section: Section) -> Log:
    section.only("error", "audit", "audit_skip", "audit_required")
    default = Log()
    skip = section.values("audit_skip")
    for path in skip:
        if not path.text.startswith("/"):
            raise path.error("an entry of 'log.audit_skip' must be a path that begins with '/', such as '/v1/ready'")
    audit = _level(section, "audit", default.audit)
    required = _switch(section, "audit_required", _SWITCH) or False
    if required and audit > 0:
        raise section.error_at("audit_required", "'log.audit_required' needs an audit log: write 'audit: on', too")
    return Log(
        error=_level(section, "error", default.error),
        audit=audit,
        audit_skip=tuple(path.text for path in skip),
        audit_required=required,
    )


def _keys(document: Section) -> tuple[str, ...]:
    lines: dict[str, int] = {}
    for section in document.sections("keys"):
        name = section.only("name").required("name")
        if not is_name(name.text):
            raise name.error(f"{name.shown} is not the name of a key: a name has {NAME_RULE}")
        if name.text in lines:
            raise name.error(f"the key {name.shown} stands already in line {lines[name.text]}")
        lines[name.text] = name.line
    return tuple(lines)


def _metrics(document: Section, listen: Address) -> Metrics:
    section = document.section("metrics").only("address", "tls")
    value = section.required("address", "write for example 'address: 127.0.0.1:7374'")
    own = _address(value)
    if own == listen:
        raise value.error("'metrics.address' must differ from 'address'; choose another port")
    return Metrics(own, tls=_switch(section, "tls", _SWITCH) or False)


def _refuse_api_key(identity: Value) -> None:
    if identity.text.startswith(_API_KEY):
        raise identity.error(
            f"{identity.key!r} holds an API key, which is a secret; write its identity, as 'kes identity of' prints it"
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


def _duration(section: Section, key: str, default: float) -> float:
    value = section.value(key)
    if value is None:
        return default
    try:
        seconds = duration.parse(value.text)
    except ValueError as failure:
        raise value.error(f"{value.key!r} is {value.shown}: {failure}") from None
    if seconds < 0:
        raise value.error(f"{value.key!r} is {value.shown}, but cannot be negative; to switch it off, write '0s'")
    return seconds


def _level(section: Section, key: str, default: int) -> int:
    value = section.value(key)
    if value is None or not value.text.strip():
        return default
    try:
        return level.parse(value.text)
    except ValueError as failure:
        raise value.error(f"{value.key!r} is {value.shown}: {failure}") from None
