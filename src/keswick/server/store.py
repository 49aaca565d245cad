"""A key store as the server uses it: every call is timed and counted, every failure has one type, and calls run in
threads of their own, which a store that hangs cannot fill for long."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError
from keswick.server.faults import describe

T = TypeVar("T")

THREADS = 32
"""Calls of a key store at the same time; the others wait for their turn."""
OUTAGE_CALLS = 4
"""Of them while the store is known to be away; the others fail at once."""

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
            raise KeyStoreError(f"{self.description}: {describe(error)}") from error
        finally:
            self._observe(operation, time.perf_counter() - begin, failed)


class StoreThreads(ThreadPoolExecutor):
    """Where the calls of one key store run.

    `outage` tells what is known of an outage. While there is one, a few calls find out whether it is over, and all
    others fail at once with what is known: waiting in line behind calls that hang would tell them nothing else, late.
    """

    def __init__(self, outage: Callable[[], KeyStoreError | None] = lambda: None) -> None:
        super().__init__(THREADS, thread_name_prefix="keystore")
        self.outage = outage
        self._pending = 0
        self._counting = threading.Lock()

    def submit(self, call: Callable[..., T], /, *arguments: Any, **options: Any) -> "Future[T]":
        with self._counting:
            known = self.outage() if self._pending >= OUTAGE_CALLS else None
            if known is None:
                self._pending += 1
        if known is not None:
            refused: Future[T] = Future()
            refused.set_exception(type(known)(str(known)))
            return refused
        future = super().submit(call, *arguments, **options)
        future.add_done_callback(self._end)
        return future

    def _end(self, future: "Future[Any]") -> None:
        with self._counting:
            self._pending -= 1
