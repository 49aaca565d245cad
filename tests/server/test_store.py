"""The measured store: what is told of each call, and that every failure has one type. The threads that call it."""

import threading

import pytest

from keswick.keystore import KeyExists, KeyNotFound, KeyStoreError, KeyStoreUnreachable
from keswick.keystore.memory import MemoryStore
from keswick.server.store import OUTAGE_CALLS, THREADS, MeasuredStore, StoreThreads


class Broken(MemoryStore):
    """Raises against the contract, as a library below a store might."""

    def get(self, name: str) -> bytes:
        raise RuntimeError("boom")

    def list(self, prefix: str) -> list[str]:
        raise OSError("boom")

    def status(self) -> float:
        raise KeyStoreUnreachable("away")


def test_calls_are_told_with_their_outcome() -> None:
    seen: list[tuple[str, bool]] = []
    store = MeasuredStore(MemoryStore(), lambda operation, seconds, failed: seen.append((operation, failed)))
    store.create("a", b"1")
    with pytest.raises(KeyExists):
        store.create("a", b"2")
    with pytest.raises(KeyNotFound):
        store.get("b")
    assert list(store.list("")) == ["a"]
    store.delete("a")
    assert store.status() >= 0
    # What a client asked for wrongly is no failure of the store.
    assert seen == [(name, False) for name in ("create", "create", "get", "list", "delete", "status")]


def test_failures_become_store_errors() -> None:
    seen: list[tuple[str, bool]] = []
    store = MeasuredStore(Broken(), lambda operation, seconds, failed: seen.append((operation, failed)))
    with pytest.raises(KeyStoreError, match="internal error: RuntimeError at"):
        store.get("a")
    with pytest.raises(KeyStoreError, match="internal error: OSError at"):
        store.list("")
    with pytest.raises(KeyStoreUnreachable):
        store.status()
    assert seen == [("get", True), ("list", True), ("status", True)]


# --- its threads ---


def test_as_many_calls_run_at_once_as_there_are_threads() -> None:
    together = threading.Barrier(THREADS)
    with StoreThreads() as threads:
        for call in [threads.submit(together.wait, 30) for _ in range(THREADS)]:
            call.result()


def test_during_an_outage_a_few_calls_try_and_the_others_are_told_at_once() -> None:
    known: list[KeyStoreError] = []
    over = threading.Event()
    with StoreThreads(lambda: known[0] if known else None) as threads:
        hanging = [threads.submit(over.wait, 30) for _ in range(OUTAGE_CALLS + 1)]
        known.append(KeyStoreUnreachable("nobody listens"))
        refused = threads.submit(over.wait, 30)
        assert refused.done()
        with pytest.raises(KeyStoreUnreachable, match="nobody listens") as told:
            refused.result()
        assert told.value is not known[0]  # or it would gather the traces of all who are told
        over.set()
        assert all(call.result() for call in hanging)
        assert threads.submit(over.wait, 30).result()  # as one of the few
        known.clear()
        assert all(call.result() for call in [threads.submit(over.wait, 30) for _ in range(THREADS)])
