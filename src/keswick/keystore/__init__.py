"""Key stores: where keys are kept. One contract, one module per store, one function that opens what is configured."""

from keswick.config import model
from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable

__all__ = ["KeyExists", "KeyNotFound", "KeyStore", "KeyStoreError", "KeyStoreUnreachable", "open"]


def open(section: model.KeyStoreSection) -> KeyStore:
    """Open the store that is configured. Raises KeyStoreError, in words for an operator, when that fails.

    A store's module is imported only when it is used: some carry whole cloud libraries.
    """
    match section:
        case model.FSStore(path=path):
            from keswick.keystore.fs import FSStore

            return FSStore(path)
        case model.MemoryStore():
            from keswick.keystore.memory import MemoryStore

            return MemoryStore()
        case model.RemoteStore(kind=kind):
            raise KeyStoreError(f"this build has no key store of the kind '{kind}': use keystore.fs")
