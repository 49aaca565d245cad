"""Every key of the configuration file, described: the tables of docs/configuration.md are made from this.

The readers do not use it. Tests drive them with each key that stands here, and look that no other one is accepted.
"""

from collections.abc import Mapping
from typing import NamedTuple

from keswick.config import duration
from keswick.config.limits import DEFAULT_LIMITS, RANGES, is_duration


class Key(NamedTuple):
    """A key within a section, and what an operator has to know of it. Texts are Markdown."""

    name: str
    """With dots, such as `proxy.header.cert`."""
    meaning: str
    value: str
    """What is to be written, such as `duration`."""
    example: str | tuple[str, ...]
    """A valid value; several are entries of a list."""
    default: str = ""
    """The value that an absent key has, as it would be written; empty if there is none that could be written."""
    otherwise: str = "none"
    """What an absent key without such a default means."""
    needed: str | None = None
    """What it is required with: another key or a section, or "" for the section that is described; None: nothing."""
    own: bool = False
    """Whether the original has no such key."""
    since: str = "0.1.0"
    """The version of Keswick."""


_SWITCH = "`on` or `off`"
_BOOLEAN = "`true` or `false`"
_DURATION = "duration"
_IDENTITY = "identity"
_FILE = "path of a PEM file"
_FILES = "path of a PEM file or a folder of them"
_LEVEL = "level"
_TEXT = "text"

_FROM = (
    "the networks of TCP proxies, from which each connection must begin with a PROXY header, version 2; from elsewhere "
    "none may",
    "list of networks",
    ("10.0.0.0/8", "192.168.7.1"),
)
_HEADER_TIME = ("how long it may take to come", _DURATION, "2s")

_ENDPOINT = "URL"
_STORE_CA = Key("tls.ca", "whom to trust when the store is called", _FILES, "/etc/kes/store-ca.crt")

_BOUNDS = {
    "connections": ("at the same time", "20000"),
    "handshakes": ("that are not finished", "2000"),
    "handshakes_per_address": ("that are not finished, from one address", "500"),
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


def _bound(name: str, meaning: str, example: str) -> Key:
    least, most = RANGES[name]
    if is_duration(name):
        value = f"duration from `{duration.format(least)}` to `{duration.format(most)}`"
        otherwise = duration.format(DEFAULT_LIMITS[name])
    else:
        value = f"number from {least:.0f} to {most:.0f}"
        otherwise = f"{DEFAULT_LIMITS[name]:.0f}"
    return Key(name, meaning, value, example, otherwise=f"`{otherwise}`", own=True)


REFERENCE: Mapping[str, tuple[Key, ...]] = {
    "": (
        Key("version", "the form of the file", "`v1`", "v1"),
        Key(
            "compatibility",
            "of which time the answers of the API are; any but `2025` has other defaults, too (see below)",
            "`2021`, `2022`, `2023` or `2025`",
            "2023",
            default="2025",
            own=True,
        ),
        Key(
            "runtime_policies",
            "may policies and assignments be written through the API? What is written is forgotten at a restart",
            _SWITCH,
            "on",
            default="off",
            own=True,
        ),
        Key("address", "where to listen", "address", "127.0.0.1:7373", default="0.0.0.0:7373"),
    ),
    "admin": (
        Key(
            "identity",
            "who may do everything: what `kes identity of` prints for a certificate or an API key; a word such as "
            "`disabled` stands for nobody",
            _IDENTITY,
            "${KES_ADMIN_IDENTITY}",
            needed="",
        ),
    ),
    "tls": (
        Key("key", "the server's private key", _FILE, "/etc/kes/server.key", needed=""),
        Key(
            "cert",
            "the server's certificate and its chain; it needs a DNS name or an IP address as SAN",
            _FILE,
            "/etc/kes/server.crt",
            needed="",
        ),
        Key("password", "for an encrypted private key", _TEXT, "${KES_TLS_PASSWORD}"),
        Key("ca", "whom to trust besides the roots of the system, when `auth` is `on`", _FILES, "/etc/kes/clients.crt"),
        Key(
            "auth",
            "verify the certificates of clients? When `off`, any certificate is let in, and its public key alone "
            "decides",
            _SWITCH,
            "on",
            default="off",
        ),
        Key(
            "proxy.identities",
            "the TLS proxies that forward the certificates of their clients",
            "list of identities",
            ("${PROXY_IDENTITY}",),
        ),
        Key(
            "proxy.header.cert",
            "the header in which they do",
            "name of a header",
            "X-Tls-Client-Cert",
            needed="proxy.identities",
        ),
        Key(
            "proxy.admin",
            "may a forwarded certificate be that of the administrator? Whoever controls a proxy could do everything",
            _SWITCH,
            "off",
            default="on",
            own=True,
        ),
    ),
    "api.*": (
        Key(
            "skip_auth",
            "answer clients without a certificate; only for `/version`, `/v1/ready`, `/v1/status`, `/v1/metrics` and "
            "`/v1/api`",
            _BOOLEAN,
            "true",
            default="false",
        ),
        Key("timeout", "how long an answer may take; `0s` is that of the route", _DURATION, "5s", default="0s"),
    ),
    "policy.*": (
        Key("allow", "rules for paths that are permitted", "list of rules", ("/v1/key/generate/*",)),
        Key(
            "deny",
            "rules for paths that are refused, whatever `allow` says",
            "list of rules",
            ("/v1/key/*/internal-*",),
        ),
        Key("identities", "to whom the policy applies", "list of identities", ("${STORAGE_IDENTITY}",)),
    ),
    "cache.expiry": (
        Key(
            "any",
            "a key is read from the key store again when it is in memory for so long",
            _DURATION,
            "10m",
            default="5m",
        ),
        Key("unused", "or when it was not used for so long", _DURATION, "1m", default="30s"),
        Key(
            "offline",
            "while the key store cannot be reached, keys stay for so long instead; `0s`: no difference",
            _DURATION,
            "1h",
            default="0s",
        ),
    ),
    "log": (
        Key("error", "least level of what is written to standard error", _LEVEL, "warn", default="on"),
        Key(
            "audit",
            "least level of what is recorded about requests on standard output, one JSON object in a line",
            _LEVEL,
            "on",
            default="off",
        ),
        Key(
            "audit_skip",
            "requests that are not recorded",
            "list of paths",
            ("/v1/ready", "/v1/metrics"),
            own=True,
        ),
        Key(
            "audit_required",
            "refuse a request when it cannot be recorded; `on` needs an audit log",
            _SWITCH,
            "off",
            default="off",
            own=True,
        ),
    ),
    "keys[]": (
        Key("name", "the name of a key that is created at the start if it does not exist", "name", "my-key", needed=""),
    ),
    "metrics": (
        Key(
            "address",
            "where to listen, as above; not the main address",
            "address",
            "127.0.0.1:7374",
            needed="",
            own=True,
        ),
        Key("tls", "use the server's certificate?", _SWITCH, "on", default="off", own=True),
        Key("proxy_protocol.from", *_FROM, needed="proxy_protocol", own=True),
        Key("proxy_protocol.timeout", *_HEADER_TIME, otherwise="`5s`", own=True),
    ),
    "proxy_protocol": (
        Key("from", *_FROM, needed="", own=True),
        Key("timeout", *_HEADER_TIME, default="5s", own=True),
    ),
    "stop": (
        Key(
            "delay",
            "after SIGTERM, how long everything is still served while `/v1/ready` says 503, so that balancers notice",
            _DURATION,
            "10s",
            default="0s",
            own=True,
        ),
        Key(
            "linger",
            "then, how long idle connections may bring one more request, which is answered with `Connection: close`",
            _DURATION,
            "5s",
            default="2s",
            own=True,
        ),
        Key("drain", "then, how long running requests may take", _DURATION, "30s", default="15s", own=True),
    ),
    "limits": tuple(_bound(name, *described) for name, described in _BOUNDS.items()),
    "keystore.fs": (
        Key(
            "path",
            "the folder; it is made if it does not exist. A relative path begins where the server was started",
            "path",
            "/var/lib/kes/keys",
            needed="",
        ),
    ),
    "keystore.vault": (
        Key("endpoint", "where Vault is", _ENDPOINT, "https://127.0.0.1:8200", needed=""),
        Key("engine", "path of the key-value engine", "path", "secret", default="kv"),
        Key("version", "of the engine", "`v1` or `v2`", "v2", default="v1"),
        Key("namespace", "in which everything is", "path", "team-a"),
        Key("prefix", "folder in the engine", "path", "kes"),
        Key("approle.id", "role ID", _TEXT, "${VAULT_APPROLE_ID}", needed="approle"),
        Key("approle.secret", "secret ID", _TEXT, "${VAULT_APPROLE_SECRET}", needed="approle"),
        Key("approle.engine", "path of the login method", "path", "kes-approle", default="approle"),
        Key(
            "approle.namespace",
            "in which to log in; `/` for none",
            "path",
            "/",
            otherwise="that of the store",
        ),
        Key("kubernetes.role", "name of the role", _TEXT, "kes", needed="kubernetes"),
        Key(
            "kubernetes.jwt",
            "the token of the service account",
            "token or, with a `/` in it, the path of a file",
            "/var/run/secrets/kubernetes.io/serviceaccount/token",
            needed="kubernetes",
        ),
        Key("kubernetes.engine", "path of the login method", "path", "kes-kubernetes", default="kubernetes"),
        Key(
            "kubernetes.namespace",
            "in which to log in; `/` for none",
            "path",
            "/",
            otherwise="that of the store",
        ),
        Key(
            "transit.key",
            "name of a key in Vault that encrypts what is stored",
            "name",
            "kes-transit",
            needed="transit",
        ),
        Key("transit.engine", "path of the transit engine", "path", "kes-transit", default="transit"),
        Key("tls.key", "private key of the client", _FILE, "/etc/kes/vault.key", needed="tls.cert"),
        Key("tls.cert", "certificate of the client", _FILE, "/etc/kes/vault.crt", needed="tls.key"),
        _STORE_CA,
        Key("status.ping", "how often to ask whether Vault is sealed", _DURATION, "30s", default="10s"),
    ),
    "keystore.aws.secretsmanager": (
        Key("endpoint", "of the service", "host name", "secretsmanager.eu-central-1.amazonaws.com", needed=""),
        Key("region", "of the service", "name", "eu-central-1", needed=""),
        Key("kmskey", "ID of the AWS KMS key that encrypts the secrets", _TEXT, "alias/kes"),
        Key(
            "credentials.accesskey",
            "access key; without one that of the environment, the shared file or the role of the machine is used",
            _TEXT,
            "${AWS_ACCESS_KEY_ID}",
            needed="credentials.secretkey",
        ),
        Key(
            "credentials.secretkey",
            "its secret",
            _TEXT,
            "${AWS_SECRET_ACCESS_KEY}",
            needed="credentials.accesskey",
        ),
        Key("credentials.token", "token of a session", _TEXT, "${AWS_SESSION_TOKEN}"),
    ),
    "keystore.gcp.secretmanager": (
        Key("project_id", "the project", _TEXT, "my-project", needed=""),
        Key(
            "endpoint",
            "of the service",
            "`HOST:PORT`",
            "secretmanager.europe-west3.rep.googleapis.com:443",
            default="secretmanager.googleapis.com:443",
        ),
        Key("scopes", "of the access token", "list of URLs", ("https://www.googleapis.com/auth/cloud-platform",)),
        Key(
            "credentials.client_email",
            "of the service account",
            _TEXT,
            "kes@my-project.iam.gserviceaccount.com",
            needed="credentials",
        ),
        Key("credentials.client_id", "of the service account", _TEXT, "113579024680", needed="credentials"),
        Key("credentials.private_key_id", "of its key", _TEXT, "${GCP_PRIVATE_KEY_ID}", needed="credentials"),
        Key("credentials.private_key", "its key", "PEM text", "${GCP_PRIVATE_KEY}", needed="credentials"),
    ),
    "keystore.azure.keyvault": (
        Key("endpoint", "of the vault", _ENDPOINT, "https://my-vault.vault.azure.net", needed=""),
        Key("credentials.tenant_id", "the tenant", _TEXT, "${AZURE_TENANT_ID}", needed="credentials"),
        Key("credentials.client_id", "the application", _TEXT, "${AZURE_CLIENT_ID}", needed="credentials"),
        Key("credentials.client_secret", "its secret", _TEXT, "${AZURE_CLIENT_SECRET}", needed="credentials"),
        Key(
            "managed_identity.client_id",
            "the managed identity; not together with `credentials`",
            _TEXT,
            "${AZURE_CLIENT_ID}",
            needed="managed_identity",
        ),
    ),
    "keystore.fortanix.sdkms": (
        Key("endpoint", "of the service", _ENDPOINT, "https://sdkms.fortanix.com", needed=""),
        Key("group_id", "the group of new keys", _TEXT, "ce08d547-2a82-411e-ae2d-83655a4b7617"),
        Key("credentials.key", "API key of the application", _TEXT, "${FORTANIX_API_KEY}", needed=""),
        _STORE_CA,
    ),
    "keystore.gemalto.keysecure": (
        Key("endpoint", "of the server", _ENDPOINT, "https://keysecure.example.com", needed=""),
        Key("credentials.token", "refresh token", _TEXT, "${KEYSECURE_TOKEN}", needed=""),
        Key("credentials.domain", "to log in to", _TEXT, "my-domain"),
        _STORE_CA,
    ),
    "keystore.entrust.keycontrol": (
        Key("endpoint", "of the server", _ENDPOINT, "https://keycontrol.example.com", needed=""),
        Key("vault_id", "the vault", _TEXT, "e30497ce-bff3-4a4f-8a1b-5bd8cf3d5b4e", needed=""),
        Key("box_id", "the box in it", _TEXT, "kes-box", needed=""),
        Key("credentials.username", "of the account", _TEXT, "${KEYCONTROL_USER}", needed=""),
        Key("credentials.password", "of the account", _TEXT, "${KEYCONTROL_PASSWORD}", needed=""),
        _STORE_CA,
    ),
}
"""The keys of each section, by its name. `*` stands for a name that the operator chooses, `[]` for a list."""
