"""Every kind of key store: its module, and the extra of the package that it needs. A new store is a line here.

A module has SHAPE and SETTINGS, which describe its section of the configuration, and `open(settings)`, which returns a
KeyStore. It imports what is heavy only there.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import NamedTuple, Protocol, cast

from keswick.keystore.contract import KeyStore
from keswick.keystore.section import MEMORY, Setting, Shape


class Kind(NamedTuple):
    module: str
    """Beside this one."""
    extra: str = ""
    """As in `pip install keswick[aws]`."""
    needs: str = ""
    """A module that is there when the extra is installed."""


KINDS: Mapping[str, Kind] = {
    "memory": Kind("memory"),
    "fs": Kind("fs"),
    "vault": Kind("vault"),
    "aws.secretsmanager": Kind("aws", "aws", "botocore"),
    "gcp.secretmanager": Kind("gcp", "gcp", "google.cloud.secretmanager_v1"),
    "azure.keyvault": Kind("azure", "azure", "azure.identity"),
    "gemalto.keysecure": Kind("keysecure"),
    "fortanix.sdkms": Kind("fortanix"),
    "entrust.keycontrol": Kind("entrust"),
    "generic": Kind("generic"),
    "encryptedfs": Kind("encryptedfs"),
    "postgresql": Kind("postgresql", "postgresql", "psycopg"),
}
"""By the name of the section below `keystore`."""

CONFIGURABLE = tuple(kind for kind in KINDS if kind != MEMORY.kind)


class StoreModule(Protocol):
    SHAPE: Shape
    SETTINGS: tuple[Setting, ...]

    def open(self, settings: Mapping[str, str], /) -> KeyStore: ...

    def is_new(self, settings: Mapping[str, str], /) -> bool:
        """Only where SHAPE names a folder: whether opening would make something on this machine. Nothing is made."""


def module(kind: str) -> StoreModule:
    return cast(StoreModule, import_module(f"keswick.keystore.{KINDS[kind].module}"))
