"""A key store as the server uses it: every call is timed and counted, and every failure has one type."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError

T = TypeVar("T")

Observer = Callable[[str, float, bool], None]
"""Told of each call: operation, seconds, whether the store failed."""


class MeasuredStore:
    """Wraps a store behind the same contract. What a store raises against the contract becomes a KeyStoreError."""

    def __init__(self, store: KeyStore, observe: Observer) -> None:
        self._store = store
        self._observe = observe
        self.description = store.description
        self.atomic_create = store.atomic_create

    def status(self) -> float:
        return self._measured("status", self._store.status)

    def create(self, name: str, value: bytes) -> None:
        self._measured("create", lambda: self._store.create(name, value))

    def get(self, name: str) -> bytes:
        return self._measured("get", lambda: self._store.get(name))

    def delete(self, name: str) -> None:
        self._measured("delete", lambda: self._store.delete(name))

    def list(self, prefix: str) -> Iterable[str]:
        return self._measured("list", lambda: list(self._store.list(prefix)))

    def warnings(self) -> Sequence[str]:
        return self._store.warnings()

    def close(self) -> None:
        self._store.close()

    def _measured(self, operation: str, call: Callable[[], T]) -> T:
        begin = time.perf_counter()
        failed = True
        try:
            result = call()
            failed = False
            return result
        except (KeyExists, KeyNotFound):
            failed = False
            raise
        except KeyStoreError:
            raise
        except Exception as error:
            raise KeyStoreError(f"{self.description}: {type(error).__name__}: {error}") from error
        finally:
            self._observe(operation, time.perf_counter() - begin, failed)
