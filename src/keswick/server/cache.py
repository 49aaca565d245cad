"""The key cache: parsed keys by name, so that the key store is asked once and not for every request.

An entry lives `any` seconds from its insertion and `unused` seconds from its last use; 0 switches a limit off. What the
store does not have, or what cannot be parsed, is never cached. Only the main thread changes the cache; any thread may
look a key up, without a lock.

Outages. The store is asked for its status every few seconds, and each fetch shows whether it answers, too. When it does
not, and `offline` is set, the two limits pause: every entry that was alive when the store last answered is served until
`offline` seconds after the outage was noticed; then it is gone. Some time passes before an outage is noticed. Therefore
an entry that expires is not served any more, but kept until the store has answered once again; if it does not answer,
the entry comes back. After the outage the two limits count as if there had been none.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from keswick.keystore import KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable
from keswick.server.store import StoreThreads

K = TypeVar("K")
T = TypeVar("T")

PROBE_SECONDS = 10.0
"""Between two probes of a store that answers."""
OUTAGE_PROBE_SECONDS = 1.0
"""Between two probes of a store that does not answer."""
ANSWER_SECONDS = 13.0
"""The longest that an answer to a probe may take. Stores that are called over a network give up a little before."""
REMINDER_SECONDS = 60.0
"""Between two reports of an outage that goes on."""

Report = Callable[[KeyStoreError | None, float], None]
"""Told of an outage, and for how many seconds it lasts: 0 when it begins, then again and again. At its end the error is
None."""


def _report_nothing(error: KeyStoreError | None, seconds: float) -> None:
    pass


class _Entry(Generic[K]):
    __slots__ = ("inserted", "key", "used")

    def __init__(self, key: K, now: float) -> None:
        self.key = key
        self.inserted = now
        self.used = now


class KeyCache(Generic[K]):
    """`decode` makes a key of what the store holds. `any`, `unused` and `offline` are seconds.

    Calls of `store`, which raises nothing but what its contract says, run in `threads`.
    """

    def __init__(
        self,
        store: KeyStore,
        decode: Callable[[bytes], K],
        *,
        any: float,
        unused: float,
        offline: float,
        threads: StoreThreads,
        report: Report = _report_nothing,
        clock: Callable[[], float] = time.monotonic,
        probe_seconds: float = PROBE_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self.hits = 0
        self.misses = 0
        self.store_error: KeyStoreError | None = None
        """What the store failed with when it was last asked; None when it answered."""
        self._store = store
        self._decode = decode
        self._threads = threads
        self._report = report
        self._clock = clock
        self._probe_seconds = probe_seconds
        self._answer_seconds = answer_seconds
        self._entries: dict[str, _Entry[K]] = {}
        self._fetches: dict[str, asyncio.Task[K]] = {}
        self._answered = clock()
        """The store was there at this moment or later."""
        self._outage_noticed: float | None = None
        self._outage_told = 0.0
        self._probe_now = asyncio.Event()
        self._status_call: asyncio.Future[float] | None = None
        self._status_asked = 0.0
        self.configure(any, unused, offline)

    def configure(self, any: float, unused: float, offline: float) -> None:
        """Change the limits; they apply to the entries that are there, too."""
        self._any = any or math.inf
        self._unused = unused or math.inf
        self._offline = offline

    # --- look-up, on any thread ---

    def get(self, name: str) -> K | None:
        """The key, if it is cached and alive. That is a use of it."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        now = self._clock()
        fresh = now - entry.inserted < self._any and now - entry.used < self._unused
        if (not fresh or self._outage_noticed is not None) and not self._alive(entry, now):
            return None
        entry.used = now
        self.hits += 1
        return entry.key

    def __len__(self) -> int:
        return len(self._entries)

    def _alive(self, entry: _Entry[K], now: float) -> bool:
        noticed = self._outage_noticed
        if noticed is not None and self._offline:
            return now - max(noticed, entry.inserted) < self._offline and self._fresh(entry, self._answered)
        return self._fresh(entry, now)

    def _fresh(self, entry: _Entry[K], now: float) -> bool:
        return now - entry.inserted < self._any and now - entry.used < self._unused

    # --- the store's health ---

    @property
    def offline(self) -> bool:
        """Whether the store did not answer, or answered wrongly, when it was last asked."""
        return self._outage_noticed is not None

    @property
    def serves_offline(self) -> bool:
        """Whether cached keys are served for the sake of a store that does not answer now."""
        noticed = self._outage_noticed
        return self._offline > 0 and (noticed is None or self._clock() - noticed < self._offline)

    # --- on the main thread ---

    async def fetch(self, name: str) -> K:
        """The key from the cache or else from the store, which is asked once however many wait.

        Raises KeyNotFound, KeyStoreError, or what `decode` raises. One caller's cancellation does not touch the others.
        """
        key = self.get(name)
        if key is not None:
            return key
        self.misses += 1
        fetch = self._fetches.get(name)
        if fetch is None:
            fetch = asyncio.get_running_loop().create_task(self._load(name))
            self._fetches[name] = fetch
            fetch.add_done_callback(lambda done: self._end_fetch(name, done))
        return await asyncio.shield(fetch)

    async def create(self, name: str, value: bytes) -> None:
        """Create a key in the store. A key of that name that is cached was deleted by another server: it is forgotten.
        Raises KeyExists and KeyStoreError."""

        def then(done: "asyncio.Future[None]") -> None:
            if done.exception() is None:
                self.forget(name)

        await self.ask(self._store.create, name, value, then=then)

    async def delete(self, name: str) -> None:
        """Delete a key from the store. Whatever that says of it, it is forgotten. Raises KeyNotFound and
        KeyStoreError."""
        await self.ask(self._store.delete, name, then=lambda _: self.forget(name))

    async def ask(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Run a call of the store as StoreThreads does. An outage is taken note of, unless the store has answered
        something that was asked later."""
        asked = self._clock()
        try:
            return await self._threads.run(call, *arguments, **options)
        except KeyStoreUnreachable as error:
            if asked >= self._answered:
                self.notice_outage(error)
            raise

    def forget(self, name: str) -> None:
        """Drop a key that was deleted or made anew. A fetch that is under way may not put it back, and no new caller
        joins it."""
        self._entries.pop(name, None)
        self._fetches.pop(name, None)

    async def watch(self) -> None:
        """Probe the store and drop what has expired, again and again until cancelled."""
        while True:
            self._probe_now.clear()
            await self.probe()
            self.sweep()
            self._remind()
            pause = min(OUTAGE_PROBE_SECONDS, self._probe_seconds) if self.offline else self._probe_seconds
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # `wait_for` of Python 3.11 may swallow a cancellation
                    await self._probe_now.wait()

    async def probe(self) -> None:
        """Ask the store for its status, and take note of the answer, or that none came."""
        try:
            await self.status(self._answer_seconds)
        except KeyStoreError as error:
            self.notice_outage(error)

    async def status(self, seconds: float, age: float = 0.0) -> float:
        """How long the store took to answer, in seconds. It is not asked twice at once: who asks meanwhile gets the
        same answer, as does who is content with one of `age` seconds ago. Raises KeyStoreError, also when `seconds`
        after it was asked there is no answer, which is no outage yet."""
        call = self._status_call
        if call is None or (call.done() and (self.offline or self._clock() - self._status_asked >= age)):
            self._status_asked = self._clock()
            call = self._threads.status(self._store.status)
            call.add_done_callback(_take_exception)
            self._status_call = call
        asked = self._status_asked
        done, _ = await asyncio.wait([call], timeout=max(0.0, asked + seconds - self._clock()))
        if not done:
            raise KeyStoreUnreachable(f"the key store did not answer for {seconds:g} s")
        try:
            latency = call.result()
        except KeyStoreError as error:
            self.notice_outage(error)
            raise
        self._answered = max(self._answered, asked)
        self._end_outage()
        return latency

    def sweep(self) -> None:
        """Drop the entries that are dead for good."""
        now = self._clock()
        may_come_back = bool(self._offline) and not self.offline
        for name, entry in list(self._entries.items()):
            if not (self._fresh(entry, self._answered) if may_come_back else self._alive(entry, now)):
                del self._entries[name]

    def notice_outage(self, error: KeyStoreError) -> None:
        """The store failed a status call, or could not be reached by another one."""
        self.store_error = error
        self._threads.know(error if isinstance(error, KeyStoreUnreachable) else None)
        if self._outage_noticed is None:
            self._outage_noticed = self._outage_told = self._clock()
            self._probe_now.set()
            self._report(error, 0.0)

    def _end_outage(self) -> None:
        self.store_error = None
        self._threads.know(None)
        if self._outage_noticed is not None:
            lasted = self._clock() - self._outage_noticed
            self._outage_noticed = None
            self._report(None, lasted)

    def _remind(self) -> None:
        now = self._clock()
        if self._outage_noticed is not None and now - self._outage_told >= REMINDER_SECONDS:
            self._outage_told = now
            self._report(self.store_error, now - self._outage_noticed)

    def retire(self) -> None:
        """Another cache has taken its place: report nothing more."""
        self._report = _report_nothing

    def close(self) -> None:
        """Let go of the keys and of the threads."""
        self._entries.clear()
        self._threads.close()

    async def _load(self, name: str) -> K:
        fetch = asyncio.current_task()
        asked = self._clock()
        try:
            value = await self.ask(self._store.get, name)
        except KeyStoreUnreachable:
            key = self.get(name)
            if key is None:
                raise
            return key
        except KeyNotFound:
            self._answered = max(self._answered, asked)
            if self._fetches.get(name) is fetch:
                self._entries.pop(name, None)
            raise
        self._answered = max(self._answered, asked)
        key = self._decode(value)
        if self._fetches.get(name) is fetch:
            self._entries[name] = _Entry(key, self._clock())
        return key

    def _end_fetch(self, name: str, fetch: asyncio.Task[K]) -> None:
        if self._fetches.get(name) is fetch:
            del self._fetches[name]
        _take_exception(fetch)


def _take_exception(done: "asyncio.Future[Any]") -> None:
    """All who waited may have gone: that is no forgotten error."""
    if not done.cancelled():
        done.exception()
