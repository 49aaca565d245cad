"""Key stores: where keys are kept. One contract, one module per store, one table of them, one function that opens."""

from importlib.util import find_spec
from pathlib import Path

from keswick.keystore import table
from keswick.keystore.contract import (
    KeyExists,
    KeyNotFound,
    KeyNotShown,
    KeyStore,
    KeyStoreError,
    KeyStoreUnreachable,
    NotAKey,
)
from keswick.keystore.section import MEMORY, StoreSection

__all__ = [
    "MEMORY",
    "KeyExists",
    "KeyNotFound",
    "KeyNotShown",
    "KeyStore",
    "KeyStoreError",
    "KeyStoreUnreachable",
    "NotAKey",
    "StoreSection",
    "check",
    "folder",
    "is_new",
    "open",
]


def check(section: StoreSection) -> None:
    """Whether what a store needs is installed; nothing is opened. Raises KeyStoreError."""
    kind = table.KINDS[section.kind]
    try:
        installed = not kind.needs or find_spec(kind.needs) is not None
    except ModuleNotFoundError:  # of a package around it
        installed = False
    if not installed:
        raise KeyStoreError(
            f"the key store '{section.kind}' needs packages that are not installed: pip install 'keswick[{kind.extra}]'"
        )


def open(section: StoreSection) -> KeyStore:
    """Open the store that is configured. Raises KeyStoreError, in words for an operator, when that fails.

    A store's module is imported only when it is used: some carry whole cloud libraries.
    """
    check(section)
    return table.module(section.kind).open(section.settings)


def folder(section: StoreSection) -> Path | None:
    """The folder of this machine in which a store keeps its keys; None for all others."""
    key = table.module(section.kind).SHAPE.folder
    return Path(section.settings[key]) if key else None


def is_new(section: StoreSection) -> bool:
    """Whether the store is not there yet, but in a folder of this machine, where opening makes it. Nothing is made.
    Raises KeyStoreError, in words for an operator, when it is seen that it could not be."""
    module = table.module(section.kind)
    return bool(module.SHAPE.folder) and module.is_new(section.settings)
