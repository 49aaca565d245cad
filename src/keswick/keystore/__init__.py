"""Key stores: where keys are kept. One contract, one module per store, one function that opens what is configured."""

from keswick.config import model
from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable

__all__ = ["KeyExists", "KeyNotFound", "KeyStore", "KeyStoreError", "KeyStoreUnreachable", "check", "open"]


def check(section: model.KeyStoreSection) -> None:
    """Whether this build has a store of the kind that is configured; nothing is opened. Raises KeyStoreError."""
    if isinstance(section, model.RemoteStore):
        raise KeyStoreError(f"this build has no key store of the kind '{section.kind}': use keystore.fs")


def open(section: model.KeyStoreSection) -> KeyStore:
    """Open the store that is configured. Raises KeyStoreError, in words for an operator, when that fails.

    A store's module is imported only when it is used: some carry whole cloud libraries.
    """
    check(section)
    match section:
        case model.FSStore(path=path):
            from keswick.keystore.fs import FSStore

            return FSStore(path)
        case model.MemoryStore():
            from keswick.keystore.memory import MemoryStore

            return MemoryStore()
        case model.RemoteStore(kind=kind):
            raise NotImplementedError(kind)  # what `check` lets pass has its case above
