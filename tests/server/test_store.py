"""The measured store: what is told of each call, and that every failure has one type. The threads that call it."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

import pytest

from keswick.keystore import KeyExists, KeyNotFound, KeyStoreError, KeyStoreUnreachable
from keswick.keystore.memory import MemoryStore
from keswick.server import store as module
from keswick.server.store import CALLS, LISTS, OUTAGE_CALLS, MeasuredStore, StoreThreads


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


P = ParamSpec("P")


def on_a_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


class Line:
    """Calls that last until `over`."""

    def __init__(self) -> None:
        self.threads = StoreThreads()
        self.over = threading.Event()
        self.running = 0
        self._counting = threading.Lock()

    def begin(self, count: int, *, listing: bool = False) -> list["asyncio.Task[bool]"]:
        return [asyncio.create_task(self.threads.run(self._call, listing=listing)) for _ in range(count)]

    async def until_running(self, count: int) -> None:
        async with asyncio.timeout(30):
            while self.running < count:
                await asyncio.sleep(0.001)

    def _call(self) -> bool:
        with self._counting:
            self.running += 1
        return self.over.wait(30)


@contextmanager
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.over.set()
    line.threads.close()


@on_a_loop
async def test_calls_and_lists_have_bounds_of_their_own() -> None:
    with line() as calls:
        lists = calls.begin(LISTS + 1, listing=True)
        await calls.until_running(LISTS)
        gets = calls.begin(CALLS + 1)
        await calls.until_running(LISTS + CALLS)
        status = await calls.threads.status(lambda: "asked")
        assert status == "asked"
        assert calls.running == LISTS + CALLS
        calls.over.set()
        assert all(await asyncio.gather(*lists, *gets))


@on_a_loop
async def test_during_an_outage_a_few_calls_try_and_the_others_are_told_at_once() -> None:
    outage = KeyStoreUnreachable("nobody listens")
    with line() as calls:
        hanging = calls.begin(CALLS)
        waiting = calls.begin(50)
        await calls.until_running(CALLS)
        calls.threads.know(outage)
        told = await asyncio.gather(*waiting, *calls.begin(1), *calls.begin(1, listing=True), return_exceptions=True)
        assert {(type(error), str(error)) for error in told} == {(KeyStoreUnreachable, "nobody listens")}
        assert outage not in told  # or it would gather the traces of all who are told
        assert calls.running == CALLS
        calls.over.set()
        assert all(await asyncio.gather(*hanging))
        assert all(await asyncio.gather(*calls.begin(OUTAGE_CALLS)))
        calls.threads.know(None)
        assert all(await asyncio.gather(*calls.begin(3 * CALLS)))


@on_a_loop
async def test_a_call_does_not_wait_for_ever_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_SECONDS", 0.01)
    with line() as calls:
        running = calls.begin(CALLS)
        with pytest.raises(KeyStoreError, match="too slow"):
            await calls.begin(1)[0]
        calls.over.set()
        assert all(await asyncio.gather(*running))
        assert calls.running == CALLS


@on_a_loop
async def test_who_gives_up_gives_his_turn_away_but_not_what_runs() -> None:
    with line() as calls:
        running, waiting = calls.begin(CALLS), calls.begin(3)
        await calls.until_running(CALLS)
        for call in (*running[:2], *waiting):
            call.cancel()
        await asyncio.wait(waiting)
        late = calls.begin(1)
        await asyncio.sleep(0)
        assert calls.running == CALLS
        calls.over.set()
        assert all(await asyncio.gather(*running[2:], *late))
        assert calls.running == CALLS + 1
        calls.over.clear()
        calls.begin(CALLS)
        await calls.until_running(2 * CALLS + 1)  # no turn was lost


@on_a_loop
async def test_closed_threads_end_with_their_calls() -> None:
    before = threading.active_count()
    with line() as calls:
        running = calls.begin(3)
        await calls.threads.status(str)
        await calls.until_running(3)
        calls.threads.close()
        calls.over.set()
        assert all(await asyncio.gather(*running))
        async with asyncio.timeout(30):
            while threading.active_count() > before:
                await asyncio.sleep(0.001)
