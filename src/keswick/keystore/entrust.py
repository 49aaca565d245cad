"""Entrust KeyControl."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import CA, CA_ONLY, TEXT, URL, Setting, Shape

SHAPE = Shape(
    required=("endpoint", "vault_id", "box_id", "credentials"),
    sections={"credentials": Shape(required=("username", "password")), "tls": CA_ONLY},
)

SETTINGS = (
    Setting("endpoint", "of the server", URL, "https://keycontrol.example.com", needed=""),
    Setting("vault_id", "the vault", TEXT, "e30497ce-bff3-4a4f-8a1b-5bd8cf3d5b4e", needed=""),
    Setting("box_id", "the box in it", TEXT, "kes-box", needed=""),
    Setting("credentials.username", "of the account", TEXT, "${KEYCONTROL_USER}", needed=""),
    Setting("credentials.password", "of the account", TEXT, "${KEYCONTROL_PASSWORD}", needed=""),
    CA,
)


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'entrust.keycontrol': use keystore.fs")
