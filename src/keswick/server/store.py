"""A key store as the server uses it: every call is timed and counted, every failure has one type, and calls run in
threads of their own, so many at once and no more."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable
from keswick.server.faults import describe

T = TypeVar("T")

CALLS = 24
"""Calls of a key store at the same time; the others wait for their turn. Together with lists they leave some of its 32
connections free, so that its status and its logins need not wait for them."""
LISTS = 4
"""Lists at the same time, besides: those of a large store take long, and fill memory."""
OUTAGE_CALLS = 4
"""Calls and lists while the store is known to be away; the others fail at once."""
TURN_SECONDS = 15.0
"""How long a call waits for its turn. Then its client has gone, by the time limit of the API."""

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


class StoreThreads:
    """Where the calls of one key store run. All but the calls themselves happens on the main thread.

    While an outage is known, a few calls find out whether it is over, and all others fail at once, also those that wait
    already: waiting in line behind calls that hang would tell them nothing else, late.
    """

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(CALLS + LISTS, thread_name_prefix="keystore")
        self._prober = ThreadPoolExecutor(1, thread_name_prefix="keystore-status")
        self._calls = asyncio.Semaphore(CALLS)
        self._lists = asyncio.Semaphore(LISTS)
        self._running = 0
        self._waiting: set[asyncio.Timeout] = set()
        self._outage: KeyStoreUnreachable | None = None

    async def run(
        self,
        call: Callable[..., T],
        *arguments: Any,
        listing: bool = False,
        then: Callable[["asyncio.Future[T]"], None] | None = None,
    ) -> T:
        """Raises what the call raises, or KeyStoreError when its turn does not come. Who is cancelled before it has
        called nothing; a call that runs is carried out, and `then` is told of its end, whoever waits for it still."""
        turns = self._lists if listing else self._calls
        await self._turn(turns)
        self._running += 1
        running = asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        running.add_done_callback(lambda _: self._end(turns))
        if then is not None:
            running.add_done_callback(then)
        return await asyncio.shield(running)

    def status(self, call: Callable[[], T]) -> "asyncio.Future[T]":
        """A call that waits for no others but of its kind."""
        return asyncio.get_running_loop().run_in_executor(self._prober, call)

    def know(self, outage: KeyStoreUnreachable | None) -> None:
        """What is known now of an outage."""
        self._outage = outage
        if outage is not None:
            for patience in self._waiting:
                if not patience.expired():
                    patience.reschedule(0)

    def close(self) -> None:
        """Let the threads go, each when its call ends."""
        self._threads.shutdown(wait=False)
        self._prober.shutdown(wait=False)

    async def _turn(self, turns: asyncio.Semaphore) -> None:
        if self._outage is not None and self._running >= OUTAGE_CALLS:
            raise KeyStoreUnreachable(str(self._outage))
        if not turns.locked():
            await turns.acquire()
            return
        patience = asyncio.timeout(TURN_SECONDS)
        try:
            async with patience:
                self._waiting.add(patience)
                await turns.acquire()
        except TimeoutError:
            if self._outage is not None:
                raise KeyStoreUnreachable(str(self._outage)) from None
            raise KeyStoreError("the key store is too slow for all that is asked of it: no turn came in time") from None
        finally:
            self._waiting.discard(patience)

    def _end(self, turns: asyncio.Semaphore) -> None:
        self._running -= 1
        turns.release()
