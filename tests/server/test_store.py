"""The measured store: what is told of each call, and that every failure has one type."""

import pytest

from keswick.keystore import KeyExists, KeyNotFound, KeyStoreError, KeyStoreUnreachable
from keswick.keystore.memory import MemoryStore
from keswick.server.store import MeasuredStore


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
    with pytest.raises(KeyStoreError, match="RuntimeError: boom"):
        store.get("a")
    with pytest.raises(KeyStoreError, match="OSError: boom"):
        store.list("")
    with pytest.raises(KeyStoreUnreachable):
        store.status()
    assert seen == [("get", True), ("list", True), ("status", True)]
