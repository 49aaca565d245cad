"""A folder of sealed files."""

from collections.abc import Mapping

from keswick.keystore.contract import KeyStore, KeyStoreError
from keswick.keystore.section import Setting, Shape

SHAPE = Shape(required=("path",), folder="path")

SETTINGS = (Setting("path", "the folder", "path", "/var/lib/kes/keys", needed="", own=True),)


def open(settings: Mapping[str, str]) -> KeyStore:
    raise KeyStoreError("this build has no key store of the kind 'encryptedfs': use keystore.fs")
