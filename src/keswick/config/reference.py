"""Every key of the configuration file, described: the tables of docs/configuration.md are made from this.

The readers do not use it. Tests drive them with each key that stands here, and look that no other one is accepted.
"""

from collections.abc import Iterable, Mapping

from keswick.config import duration
from keswick.config.limits import DEFAULT_LIMITS, RANGES, is_duration
from keswick.keystore import table
from keswick.keystore.section import DURATION, PEM_FILE, PEM_FILES, TEXT, Setting

_SWITCH = "`on` or `off`"
_BOOLEAN = "`true` or `false`"
_IDENTITY = "identity"
_LEVEL = "level"

_FROM = (
    "the networks of TCP proxies, from which each connection must begin with a PROXY header, version 2; from elsewhere "
    "none may. Together they may be no wider than a /8, or a /7 of IPv6",
    "list of networks",
    ("10.0.0.0/8", "192.168.7.1"),
)
_HEADER_TIME = ("how long it may take to come", DURATION, "2s")


_BOUNDS = {
    "connections": ("at the same time", "20000"),
    "handshakes": ("that are not finished", "2000"),
    "handshakes_per_address": ("that are not finished, from one address", "500"),
    "handshake_grace_seconds": ("that a handshake has before it makes room for newer ones of its address", "3s"),
    "handshake_seconds": ("for a handshake", "5s"),
    "header_bytes": ("of the header of a request", "32768"),
    "headers": ("lines of the header of a request", "200"),
    "header_seconds": ("for the header of a request", "10s"),
    "idle_seconds": ("that a connection may be idle", "5m"),
    "body_seconds": ("for the body of a request", "30s"),
    "write_seconds": ("that a client may take to read", "1m"),
    "streams": ("requests at the same time on one HTTP/2 connection", "500"),
    "requests": ("at the same time", "4000"),
    "buffered_bytes": ("of bodies and answers in memory", "134217728"),
    "drained_bytes": ("of a body beyond its limit that are read and dropped", "1000000"),
}
"""Of each limit its meaning and an example."""


def _bound(name: str, meaning: str, example: str) -> Setting:
    least, most = RANGES[name]
    if is_duration(name):
        value = f"duration from `{duration.format(least)}` to `{duration.format(most)}`"
        otherwise = duration.format(DEFAULT_LIMITS[name])
    else:
        value = f"number from {least:.0f} to {most:.0f}"
        otherwise = f"{DEFAULT_LIMITS[name]:.0f}"
    return Setting(name, meaning, value, example, otherwise=f"`{otherwise}`", own=True)


REFERENCE: Mapping[str, tuple[Setting, ...]] = {
    "": (
        Setting("version", "the form of the file", "`v1`", "v1"),
        Setting(
            "compatibility",
            "of which time the answers of the API are; any but `2025` has other defaults, too (see below)",
            "`2021`, `2022`, `2023` or `2025`",
            "2023",
            default="2025",
            own=True,
        ),
        Setting(
            "runtime_policies",
            "may policies and assignments be written through the API? What is written is forgotten at a restart",
            _SWITCH,
            "on",
            default="off",
            own=True,
        ),
        Setting("address", "where to listen", "address", "127.0.0.1:7373", default="0.0.0.0:7373"),
    ),
    "admin": (
        Setting(
            "identity",
            "who may do everything: what `kes identity of` prints for a certificate or an API key; a word such as "
            "`disabled` stands for nobody",
            _IDENTITY,
            "${KES_ADMIN_IDENTITY}",
            needed="",
        ),
    ),
    "tls": (
        Setting("key", "the server's private key", PEM_FILE, "/etc/kes/server.key", needed=""),
        Setting(
            "cert",
            "the server's certificate and its chain; it needs a DNS name or an IP address as SAN",
            PEM_FILE,
            "/etc/kes/server.crt",
            needed="",
        ),
        Setting("password", "for an encrypted private key", TEXT, "${KES_TLS_PASSWORD}"),
        Setting(
            "ca",
            "whom to trust besides the roots of the system, when `auth` is `on`",
            PEM_FILES,
            "/etc/kes/clients.crt",
        ),
        Setting(
            "auth",
            "verify the certificates of clients? When `off`, any certificate is let in, and its public key alone "
            "decides",
            _SWITCH,
            "on",
            default="off",
        ),
        Setting(
            "proxy.identities",
            "the TLS proxies that forward the certificates of their clients",
            "list of identities",
            ("${PROXY_IDENTITY}",),
        ),
        Setting(
            "proxy.header.cert",
            "the header in which they do",
            "name of a header",
            "X-Tls-Client-Cert",
            needed="proxy.identities",
        ),
        Setting(
            "proxy.admin",
            "may a forwarded certificate be that of the administrator? Whoever controls a proxy could do everything",
            _SWITCH,
            "off",
            default="on",
            own=True,
        ),
    ),
    "api.*": (
        Setting(
            "skip_auth",
            "answer clients without a certificate; only for `/version`, `/v1/ready`, `/v1/status`, `/v1/metrics` and "
            "`/v1/api`",
            _BOOLEAN,
            "true",
            default="false",
        ),
        Setting("timeout", "how long an answer may take; `0s` is that of the route", DURATION, "5s", default="0s"),
    ),
    "policy.*": (
        Setting("allow", "rules for paths that are permitted", "list of rules", ("/v1/key/generate/*",)),
        Setting(
            "deny",
            "rules for paths that are refused, whatever `allow` says",
            "list of rules",
            ("/v1/key/*/internal-*",),
        ),
        Setting("identities", "to whom the policy applies", "list of identities", ("${STORAGE_IDENTITY}",)),
    ),
    "cache.expiry": (
        Setting(
            "any",
            "a key is read from the key store again when it is in memory for so long",
            DURATION,
            "10m",
            default="5m",
        ),
        Setting("unused", "or when it was not used for so long", DURATION, "1m", default="30s"),
        Setting(
            "offline",
            "while the key store cannot be reached, keys stay for so long instead; `0s`: no difference",
            DURATION,
            "1h",
            default="0s",
        ),
    ),
    "log": (
        Setting("error", "least level of what is written to standard error", _LEVEL, "warn", default="on"),
        Setting(
            "audit",
            "least level of what is recorded about requests on standard output, one JSON object in a line",
            _LEVEL,
            "on",
            default="off",
        ),
        Setting(
            "audit_skip",
            "requests that are not recorded",
            "list of paths",
            ("/v1/ready", "/v1/metrics"),
            own=True,
        ),
        Setting(
            "audit_required",
            "refuse a request when it cannot be recorded; `on` needs an audit log",
            _SWITCH,
            "off",
            default="off",
            own=True,
        ),
    ),
    "keys[]": (
        Setting(
            "name", "the name of a key that is created at the start if it does not exist", "name", "my-key", needed=""
        ),
    ),
    "metrics": (
        Setting(
            "address",
            "where to listen, as above; not the main address",
            "address",
            "127.0.0.1:7374",
            needed="",
            own=True,
        ),
        Setting("tls", "use the server's certificate?", _SWITCH, "on", default="off", own=True),
        Setting("proxy_protocol.from", *_FROM, needed="proxy_protocol", own=True),
        Setting("proxy_protocol.timeout", *_HEADER_TIME, otherwise="`5s`", own=True),
    ),
    "proxy_protocol": (
        Setting("from", *_FROM, needed="", own=True),
        Setting("timeout", *_HEADER_TIME, default="5s", own=True),
    ),
    "stop": (
        Setting(
            "delay",
            "after SIGTERM, how long everything is still served while `/v1/ready` says 503, so that balancers notice",
            DURATION,
            "10s",
            default="0s",
            own=True,
        ),
        Setting(
            "linger",
            "then, how long idle connections may bring one more request, which is answered with `Connection: close`",
            DURATION,
            "5s",
            default="2s",
            own=True,
        ),
        Setting("drain", "then, how long running requests may take", DURATION, "30s", default="15s", own=True),
    ),
    "limits": tuple(_bound(name, *described) for name, described in _BOUNDS.items()),
}
"""The keys of each section by its name, but those of the key stores, which describe themselves. `*` stands for a name
that the operator chooses, `[]` for a list."""


def reference(stores: Iterable[str] = table.CONFIGURABLE) -> Mapping[str, tuple[Setting, ...]]:
    """The keys of every section, by its name, with those of these key stores."""
    return {**REFERENCE, **{f"keystore.{kind}": table.module(kind).SETTINGS for kind in stores}}
