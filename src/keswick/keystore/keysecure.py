"""Thales CipherTrust Manager, once Gemalto KeySecure."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import CA, CA_ONLY, TEXT, URL, Setting, Shape

SHAPE = Shape(
    required=("endpoint", "credentials"),
    sections={
        "credentials": Shape(required=("token",), optional=("domain",), meaningless=("retry",)),
        "tls": CA_ONLY,
    },
)

SETTINGS = (
    Setting("endpoint", "of the server", URL, "https://keysecure.example.com", needed=""),
    Setting("credentials.token", "refresh token", TEXT, "${KEYSECURE_TOKEN}", needed=""),
    Setting("credentials.domain", "to log in to", TEXT, "my-domain"),
    CA,
)


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'gemalto.keysecure': use keystore.fs")
