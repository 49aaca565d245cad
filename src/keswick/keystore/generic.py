"""A plugin of 2021 to 2023 as the key store."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import CA, PEM_FILE, URL, Setting, Shape

SHAPE = Shape(
    required=("endpoint",),
    sections={"tls": Shape(optional=("key", "cert", "ca"), together=("key", "cert"))},
)

SETTINGS = (
    Setting("endpoint", "of the plugin", URL, "https://127.0.0.1:7003", needed=""),
    Setting("tls.key", "private key of the client", PEM_FILE, "/etc/kes/plugin-client.key", needed="tls.cert"),
    Setting("tls.cert", "certificate of the client", PEM_FILE, "/etc/kes/plugin-client.crt", needed="tls.key"),
    CA,
)


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'generic': use keystore.fs")
