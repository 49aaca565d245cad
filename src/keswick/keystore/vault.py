"""OpenBao and HashiCorp Vault."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import CA, DURATION, PEM_FILE, TEXT, URL, Setting, Shape

SHAPE = Shape(
    required=("endpoint",),
    optional=("namespace", "prefix"),
    defaults={"engine": "kv", "version": "v1"},
    choices={"version": ("v1", "v2")},
    sections={
        "approle": Shape(
            required=("id", "secret"),
            optional=("namespace",),
            defaults={"engine": "approle"},
            meaningless=("retry",),
        ),
        "kubernetes": Shape(
            required=("role", "jwt"),
            optional=("namespace",),
            defaults={"engine": "kubernetes"},
            meaningless=("retry",),
        ),
        "transit": Shape(required=("key",), defaults={"engine": "transit"}),
        "tls": Shape(optional=("key", "cert", "ca"), together=("key", "cert")),
        "status": Shape(defaults={"ping": "10.0"}, durations=("ping",)),
    },
    methods=("approle", "kubernetes"),
    must_log_in=True,
)

SETTINGS = (
    Setting("endpoint", "where Vault is", URL, "https://127.0.0.1:8200", needed=""),
    Setting("engine", "path of the key-value engine", "path", "secret", default="kv"),
    Setting("version", "of the engine", "`v1` or `v2`", "v2", default="v1"),
    Setting("namespace", "in which everything is", "path", "team-a"),
    Setting("prefix", "folder in the engine", "path", "kes"),
    Setting("approle.id", "role ID", TEXT, "${VAULT_APPROLE_ID}", needed="approle"),
    Setting("approle.secret", "secret ID", TEXT, "${VAULT_APPROLE_SECRET}", needed="approle"),
    Setting("approle.engine", "path of the login method", "path", "kes-approle", default="approle"),
    Setting(
        "approle.namespace",
        "in which to log in; `/` for none",
        "path",
        "/",
        otherwise="that of the store",
    ),
    Setting("kubernetes.role", "name of the role", TEXT, "kes", needed="kubernetes"),
    Setting(
        "kubernetes.jwt",
        "the token of the service account",
        "token or, with a `/` in it, the path of a file",
        "/var/run/secrets/kubernetes.io/serviceaccount/token",
        needed="kubernetes",
    ),
    Setting("kubernetes.engine", "path of the login method", "path", "kes-kubernetes", default="kubernetes"),
    Setting(
        "kubernetes.namespace",
        "in which to log in; `/` for none",
        "path",
        "/",
        otherwise="that of the store",
    ),
    Setting(
        "transit.key",
        "name of a key in Vault that encrypts what is stored",
        "name",
        "kes-transit",
        needed="transit",
    ),
    Setting("transit.engine", "path of the transit engine", "path", "kes-transit", default="transit"),
    Setting("tls.key", "private key of the client", PEM_FILE, "/etc/kes/vault.key", needed="tls.cert"),
    Setting("tls.cert", "certificate of the client", PEM_FILE, "/etc/kes/vault.crt", needed="tls.key"),
    CA,
    Setting("status.ping", "how often to ask whether Vault is sealed", DURATION, "30s", default="10s"),
)


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'vault': use keystore.fs")
