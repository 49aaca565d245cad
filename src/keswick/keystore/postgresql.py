"""PostgreSQL."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import TEXT, Setting, Shape

SHAPE = Shape(required=("host",))

SETTINGS = (Setting("host", "of the server", TEXT, "db.example.com", needed="", own=True),)


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'postgresql': use keystore.fs")
