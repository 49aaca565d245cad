import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable
from keswick.server.cache import KeyCache, Report
from keswick.server.store import CALLS, StoreThreads


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store(KeyStore):
    """Keys in a dictionary. Every call raises `failure`, if there is one; a closed `gate` holds calls back, a closed
    `lock` those that change something."""

    description = "fake"
    atomic_create = True

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {"a": b"A", "b": b"B"}
        self.failure: KeyStoreError | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Event()
        self.lock.set()
        self.gets: list[str] = []
        self.statuses = 0

    def status(self) -> float:
        self.statuses += 1
        self.gate.wait(60)
        if self.failure is not None:
            raise self.failure
        return 0.001

    def create(self, name: str, value: bytes) -> None:
        self._change()
        if name in self.values:
            raise KeyExists(name)
        self.values[name] = value

    def get(self, name: str) -> bytes:
        self.gets.append(name)
        value = self.values.get(name)
        failure = self.failure
        self.gate.wait(60)
        if failure is not None:
            raise failure
        if value is None:
            raise KeyNotFound(name)
        return value

    def delete(self, name: str) -> None:
        self._change()
        del self.values[name]

    def _change(self) -> None:
        self.lock.wait(60)
        if self.failure is not None:
            raise self.failure

    def list(self, prefix: str) -> Iterable[str]:
        return list(self.values)

    def warnings(self) -> Sequence[str]:
        return []

    def close(self) -> None:
        self.gate.set()
        self.lock.set()


class Scene:
    """A cache, the store behind it, and the clock that both go by."""

    def __init__(
        self,
        *,
        any: float = 300,
        unused: float = 30,
        offline: float = 0,
        probe_seconds: float = 10,
        answer_seconds: float = 10,
        report: Report = lambda error, seconds: None,
    ) -> None:
        self.clock = Clock()
        self.store = Store()
        self.cache = KeyCache(
            self.store,
            decode,
            any=any,
            unused=unused,
            offline=offline,
            threads=StoreThreads(),
            clock=self.clock,
            probe_seconds=probe_seconds,
            answer_seconds=answer_seconds,
            report=report,
        )

    def fetch(self, name: str) -> str:
        return asyncio.run(self.cache.fetch(name))

    def probe(self) -> None:
        asyncio.run(self.cache.probe())
        self.cache.sweep()

    def go_away(self) -> None:
        self.store.failure = KeyStoreUnreachable("away")

    def come_back(self) -> None:
        self.store.failure = None

    def use_for(self, seconds: int, name: str) -> None:
        """Look a key up each second and probe each ten, as a busy server does; the key must be there all the time."""
        for second in range(1, seconds + 1):
            self.clock.now += 1
            if second % 10 == 0:
                self.probe()
            assert self.cache.get(name) or self.fetch(name)

    def close(self) -> None:
        self.store.close()
        self.cache.close()


def decode(value: bytes) -> str:
    if value == b"garbage":
        raise ValueError("no key")
    return value.decode().lower()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


# --- hits and misses ---


def test_a_key_is_fetched_once_and_then_served_from_the_cache(scene: Scene) -> None:
    assert scene.cache.get("a") is None
    assert scene.fetch("a") == "a"
    assert scene.fetch("a") == "a"
    assert scene.cache.get("a") == "a"
    assert scene.store.gets == ["a"]
    assert (scene.cache.hits, scene.cache.misses, len(scene.cache)) == (2, 1, 1)


def test_an_unknown_key_is_asked_for_each_time(scene: Scene) -> None:
    for _ in range(2):
        with pytest.raises(KeyNotFound):
            scene.fetch("c")
    scene.store.values["c"] = b"C"
    assert scene.fetch("c") == "c"
    assert scene.store.gets == ["c"] * 3


def test_failures_are_told_and_not_cached(scene: Scene) -> None:
    scene.store.failure = KeyStoreError("broken")
    with pytest.raises(KeyStoreError, match="broken"):
        scene.fetch("a")
    assert not scene.cache.offline
    scene.store.failure = None
    scene.store.values["g"] = b"garbage"
    with pytest.raises(ValueError, match="no key"):
        scene.fetch("g")
    assert len(scene.cache) == 0
    assert scene.fetch("a") == "a"


def test_many_who_miss_one_key_ask_the_store_once(scene: Scene) -> None:
    async def fetch_together() -> list[str]:
        scene.store.gate.clear()
        waiting = [asyncio.create_task(scene.cache.fetch(name)) for name in ("a", "b") * 50]
        await until(lambda: len(scene.store.gets) == 2)
        scene.store.gate.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(fetch_together()) == ["a", "b"] * 50
    assert sorted(scene.store.gets) == ["a", "b"]


def test_many_who_miss_one_key_are_all_told_of_the_failure(scene: Scene) -> None:
    async def fetch_together() -> list[str | BaseException]:
        return await asyncio.gather(*(scene.cache.fetch("c") for _ in range(10)), return_exceptions=True)

    assert {type(result) for result in asyncio.run(fetch_together())} == {KeyNotFound}
    assert scene.store.gets == ["c"]


def test_one_who_gives_up_leaves_the_others_waiting(scene: Scene) -> None:
    async def give_up() -> str:
        scene.store.gate.clear()
        first = asyncio.create_task(scene.cache.fetch("a"))
        second = asyncio.create_task(scene.cache.fetch("a"))
        await until(lambda: scene.store.gets)
        first.cancel()
        await asyncio.wait([first])
        scene.store.gate.set()
        assert first.cancelled()
        return await second

    assert asyncio.run(give_up()) == "a"
    assert scene.store.gets == ["a"]


def test_a_fetch_that_all_gave_up_fails_in_silence(scene: Scene) -> None:
    complaints: list[object] = []

    async def give_up() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        scene.store.gate.clear()
        only = asyncio.create_task(scene.cache.fetch("c"))
        await until(lambda: scene.store.gets)
        only.cancel()
        await asyncio.wait([only])
        scene.store.gate.set()
        await until(lambda: not scene.cache._fetches)

    asyncio.run(give_up())
    assert complaints == []


# --- expiry ---


def test_an_entry_expires_by_its_own_age_however_often_it_is_used() -> None:
    scene = Scene(any=20, unused=0)
    scene.fetch("a")
    scene.clock.now += 10
    scene.fetch("b")
    scene.clock.now += 9.9
    assert scene.cache.get("a") == "a"
    scene.clock.now += 0.1
    assert scene.cache.get("a") is None
    assert scene.cache.get("b") == "b"
    scene.close()


def test_an_entry_expires_when_it_is_not_used(scene: Scene) -> None:
    scene.fetch("a")
    scene.fetch("b")
    for _ in range(9):
        scene.clock.now += 29
        assert scene.cache.get("a") == "a"
    assert scene.cache.get("b") is None


def test_zero_switches_a_limit_off() -> None:
    scene = Scene(any=0, unused=0)
    scene.fetch("a")
    scene.clock.now += 1e9
    scene.probe()
    assert scene.cache.get("a") == "a"
    scene.close()


@pytest.mark.parametrize("offline", [0, 60])
def test_expired_entries_are_swept(offline: float) -> None:
    scene = Scene(offline=offline)
    scene.fetch("a")
    scene.clock.now += 20
    scene.fetch("b")
    scene.clock.now += 10
    scene.probe()
    assert len(scene.cache) == 1
    assert scene.cache.get("b") == "b"
    scene.close()


def test_new_limits_apply_at_once(scene: Scene) -> None:
    scene.fetch("a")
    scene.clock.now += 20
    scene.cache.configure(any=300, unused=10, offline=0)
    assert scene.cache.get("a") is None
    scene.cache.configure(any=300, unused=0, offline=0)
    assert scene.cache.get("a") == "a"


# --- keys that are made and deleted ---


def test_a_forgotten_key_is_gone(scene: Scene) -> None:
    scene.fetch("a")
    scene.store.delete("a")
    scene.cache.forget("a")
    assert scene.cache.get("a") is None
    with pytest.raises(KeyNotFound):
        scene.fetch("a")
    scene.cache.forget("never there")


def test_a_fetch_that_began_before_a_delete_does_not_put_the_key_back(scene: Scene) -> None:
    async def delete_meanwhile() -> None:
        scene.store.gate.clear()
        before = asyncio.create_task(scene.cache.fetch("a"))
        await until(lambda: scene.store.gets)
        scene.store.delete("a")
        scene.cache.forget("a")
        scene.store.gate.set()
        assert await before == "a"

    asyncio.run(delete_meanwhile())
    assert scene.cache.get("a") is None
    assert len(scene.cache) == 0


def test_a_fetch_that_begins_after_a_delete_does_not_join_one_that_began_before(scene: Scene) -> None:
    async def delete_and_create_meanwhile() -> None:
        scene.store.gate.clear()
        before = asyncio.create_task(scene.cache.fetch("a"))
        await until(lambda: scene.store.gets)
        scene.store.values["a"] = b"NEW"
        scene.cache.forget("a")
        after = asyncio.create_task(scene.cache.fetch("a"))
        await until(lambda: len(scene.store.gets) == 2)
        scene.store.gate.set()
        assert await before == "a"
        assert await after == "new"

    asyncio.run(delete_and_create_meanwhile())
    assert scene.cache.get("a") == "new"


@pytest.mark.parametrize("failure", [None, KeyStoreUnreachable("away")])
def test_a_key_is_forgotten_whatever_the_store_says_of_its_deletion(
    scene: Scene, failure: KeyStoreError | None
) -> None:
    scene.fetch("a")
    scene.store.failure = failure
    with suppress(KeyStoreUnreachable):
        asyncio.run(scene.cache.delete("a"))
    assert scene.cache.get("a") is None


def test_a_key_that_is_made_again_is_not_the_one_that_another_server_deleted(scene: Scene) -> None:
    """Or data would be sealed with a key that is nowhere any more."""
    scene.fetch("a")
    scene.store.delete("a")
    asyncio.run(scene.cache.create("a", b"NEW"))
    assert scene.fetch("a") == "new"


def test_who_has_made_a_key_joins_no_fetch_that_began_before(scene: Scene) -> None:
    async def create_meanwhile() -> None:
        scene.store.gate.clear()
        before = asyncio.create_task(scene.cache.fetch("c"))
        await until(lambda: scene.store.gets)
        await scene.cache.create("c", b"C")
        after = asyncio.create_task(scene.cache.fetch("c"))
        await until(lambda: len(scene.store.gets) == 2)
        scene.store.gate.set()
        with pytest.raises(KeyNotFound):
            await before
        assert await after == "c"

    asyncio.run(create_meanwhile())
    assert scene.cache.get("c") == "c"


def test_a_key_that_could_not_be_made_costs_no_cached_one(scene: Scene) -> None:
    scene.fetch("a")
    with pytest.raises(KeyExists):
        asyncio.run(scene.cache.create("a", b"NEW"))
    scene.go_away()
    with pytest.raises(KeyStoreUnreachable):
        asyncio.run(scene.cache.create("a", b"NEW"))
    assert scene.cache.get("a") == "a"


@pytest.mark.parametrize("change", ["create", "delete"])
def test_a_change_that_all_gave_up_is_taken_note_of_when_it_is_done(scene: Scene, change: str) -> None:
    async def give_up() -> None:
        await scene.cache.fetch("a")
        if change == "create":
            scene.store.delete("a")
        scene.store.lock.clear()
        work = scene.cache.delete("a") if change == "delete" else scene.cache.create("a", b"NEW")
        only = asyncio.create_task(work)
        await asyncio.sleep(0)
        only.cancel()
        await asyncio.wait([only])
        assert scene.cache.get("a") == "a"
        scene.store.lock.set()
        await until(lambda: scene.cache.get("a") is None)

    asyncio.run(give_up())


def test_a_key_that_another_server_deleted_is_gone_when_the_store_says_so() -> None:
    scene = Scene(offline=60)
    scene.fetch("a")
    scene.clock.now += 30
    scene.store.delete("a")
    with pytest.raises(KeyNotFound):
        scene.fetch("a")
    scene.go_away()
    with pytest.raises(KeyStoreUnreachable):
        scene.fetch("a")
    scene.close()


# --- outages ---


def test_without_offline_mode_entries_expire_during_an_outage(scene: Scene) -> None:
    scene.fetch("a")
    scene.go_away()
    scene.probe()
    assert scene.cache.offline
    assert not scene.cache.serves_offline
    assert isinstance(scene.cache.store_error, KeyStoreUnreachable)
    assert scene.cache.get("a") == "a"
    scene.clock.now += 30
    assert scene.cache.get("a") is None
    with pytest.raises(KeyStoreUnreachable):
        scene.fetch("a")


@pytest.mark.parametrize(("any", "unused"), [(14, 13), (300, 30), (3, 0), (0, 2), (1, 1)])
def test_in_offline_mode_a_key_outlives_its_limits(any: float, unused: float) -> None:
    scene = Scene(any=any, unused=unused, offline=40)
    scene.probe()
    scene.fetch("a")
    scene.go_away()
    scene.use_for(39, "a")
    assert scene.cache.offline
    assert scene.cache.serves_offline
    scene.clock.now += 12
    scene.probe()
    assert not scene.cache.serves_offline
    assert len(scene.cache) == 0
    with pytest.raises(KeyStoreUnreachable):
        scene.fetch("a")
    scene.close()


def test_a_key_that_nobody_used_since_the_outage_began_is_served() -> None:
    scene = Scene(any=5, unused=2, offline=60)
    scene.fetch("a")
    scene.go_away()
    scene.clock.now += 9
    scene.probe()
    scene.clock.now += 50
    scene.probe()
    assert scene.cache.get("a") == "a"
    scene.close()


def test_a_key_that_expired_before_the_outage_is_not_served() -> None:
    scene = Scene(any=5, unused=0, offline=60)
    scene.fetch("a")
    scene.clock.now += 5
    asyncio.run(scene.cache.probe())
    scene.go_away()
    scene.clock.now += 1
    with pytest.raises(KeyStoreUnreachable):
        scene.fetch("a")
    assert scene.cache.offline
    scene.close()


def test_an_expired_key_is_not_served_while_the_store_answers() -> None:
    scene = Scene(any=5, unused=0, offline=60)
    scene.fetch("a")
    scene.clock.now += 5
    assert scene.cache.get("a") is None
    assert scene.fetch("a") == "a"
    assert scene.store.gets == ["a", "a"]
    scene.close()


def test_an_expired_key_is_kept_until_the_store_has_answered_once_more() -> None:
    scene = Scene(any=5, unused=0, offline=60)
    scene.fetch("a")
    scene.clock.now += 5
    scene.cache.sweep()
    assert scene.cache.get("a") is None
    scene.go_away()
    assert scene.fetch("a") == "a"
    scene.close()


def test_a_key_that_is_fetched_during_an_outage_has_its_full_time() -> None:
    scene = Scene(any=5, unused=0, offline=60)
    scene.store.failure = KeyStoreError("half broken: no status, but keys")
    scene.probe()
    scene.store.failure = None
    scene.clock.now += 70
    assert scene.fetch("a") == "a"
    assert scene.cache.offline
    scene.clock.now += 59
    assert scene.cache.get("a") == "a"
    scene.clock.now += 1
    assert scene.cache.get("a") is None
    scene.close()


def test_after_an_outage_the_limits_count_again() -> None:
    scene = Scene(any=20, unused=0, offline=60)
    scene.fetch("a")
    scene.clock.now += 15
    scene.fetch("b")
    scene.go_away()
    scene.probe()
    scene.clock.now += 10
    assert scene.cache.get("a") == "a"
    scene.come_back()
    scene.probe()
    assert not scene.cache.offline
    assert scene.cache.store_error is None
    assert scene.cache.get("a") is None
    assert scene.cache.get("b") == "b"
    scene.close()


def test_a_wrong_answer_is_an_outage_too(scene: Scene) -> None:
    scene.store.failure = KeyStoreError("permission denied")
    scene.probe()
    assert scene.cache.offline
    assert scene.cache.store_error is scene.store.failure


def test_a_fetch_notices_an_outage_at_once(scene: Scene) -> None:
    scene.go_away()
    with pytest.raises(KeyStoreUnreachable):
        scene.fetch("a")
    assert scene.cache.offline
    assert scene.cache.store_error is scene.store.failure


def test_a_call_that_hung_until_the_outage_was_over_is_no_new_one(scene: Scene) -> None:
    async def hang() -> None:
        scene.store.gate.clear()
        scene.go_away()
        hanging = asyncio.create_task(scene.cache.fetch("a"))
        await until(lambda: scene.store.gets)
        scene.come_back()
        scene.clock.now += 5
        status = asyncio.create_task(scene.cache.probe())
        await until(lambda: scene.store.statuses)
        scene.store.gate.set()
        await status
        with pytest.raises(KeyStoreUnreachable):
            await hanging
        assert not scene.cache.offline

    asyncio.run(hang())


def test_an_outage_is_told_at_once_to_those_who_wait_for_their_turn(scene: Scene) -> None:
    async def wait() -> None:
        scene.store.gate.clear()
        waiting = [asyncio.create_task(scene.cache.fetch(str(number))) for number in range(100)]
        await until(lambda: len(scene.store.gets) == CALLS)
        scene.cache.notice_outage(KeyStoreUnreachable("away"))
        await until(lambda: sum(fetch.done() for fetch in waiting) == 100 - CALLS)
        assert {str(fetch.exception()) for fetch in waiting if fetch.done()} == {"away"}
        scene.store.gate.set()
        await asyncio.wait(waiting)

    asyncio.run(wait())


def test_who_does_not_wait_long_for_an_answer_has_noticed_no_outage(scene: Scene) -> None:
    async def ask() -> None:
        scene.store.gate.clear()
        with pytest.raises(KeyStoreUnreachable, match=r"did not answer for 0\.01 s"):
            await scene.cache.status(0.01)
        assert not scene.cache.offline
        scene.clock.now += 7
        with pytest.raises(KeyStoreUnreachable):
            await scene.cache.status(5)  # which is over
        scene.store.gate.set()
        assert await scene.cache.status(10) == 0.001
        assert scene.store.statuses == 1

    asyncio.run(ask())


def test_an_answer_of_a_moment_ago_is_told_again(scene: Scene) -> None:
    async def ask() -> None:
        await scene.cache.status(5, 1)
        scene.clock.now += 0.9
        await scene.cache.status(5, 1)
        assert scene.store.statuses == 1
        scene.clock.now += 0.1
        scene.go_away()
        for _ in range(2):  # an outage is asked about anew
            with pytest.raises(KeyStoreUnreachable):
                await scene.cache.status(5, 1)
        scene.come_back()
        await scene.cache.status(5, 1)
        assert scene.store.statuses == 4
        await scene.cache.status(5)
        assert scene.store.statuses == 5

    asyncio.run(ask())


def test_a_cache_that_was_replaced_says_nothing_and_keeps_nothing() -> None:
    told: list[object] = []
    scene = Scene(report=lambda error, seconds: told.append(error))
    scene.fetch("a")
    scene.cache.retire()
    scene.go_away()
    with pytest.raises(KeyStoreUnreachable):
        scene.fetch("b")
    assert told == []
    scene.cache.close()
    assert len(scene.cache) == 0


def test_who_asks_at_the_same_time_gets_one_answer(scene: Scene) -> None:
    async def ask() -> None:
        scene.store.gate.clear()
        asking = [asyncio.create_task(scene.cache.status(30)) for _ in range(5)]
        await until(lambda: scene.store.statuses)
        scene.store.gate.set()
        assert await asyncio.gather(*asking) == [0.001] * 5
        assert scene.store.statuses == 1

    asyncio.run(ask())


def test_any_call_that_cannot_reach_the_store_notices_an_outage(scene: Scene) -> None:
    def create() -> None:
        raise KeyStoreUnreachable("nobody listens")

    with pytest.raises(KeyStoreUnreachable):
        asyncio.run(scene.cache.ask(create))
    assert scene.cache.offline


def test_an_outage_is_reported_at_its_beginning_each_minute_and_at_its_end() -> None:
    told: list[tuple[bool, float]] = []
    """Whether it is away, and for how long."""
    scene = Scene(probe_seconds=0.001, report=lambda error, seconds: told.append((error is not None, seconds)))

    async def watch() -> None:
        watcher = asyncio.create_task(scene.cache.watch())
        scene.go_away()
        await until(lambda: told == [(True, 0)])
        scene.clock.now += 60
        await until(lambda: told[-1] == (True, 60))
        scene.clock.now += 60
        await until(lambda: told[-1] == (True, 120))
        scene.clock.now += 5
        scene.come_back()
        await until(lambda: told[-1] == (False, 125))
        watcher.cancel()
        await asyncio.wait([watcher])

    asyncio.run(watch())
    assert len(told) == 4
    scene.close()


# --- the watch ---


def test_the_watch_notices_outages_and_recoveries() -> None:
    scene = Scene(probe_seconds=0.001)

    async def watch() -> None:
        watcher = asyncio.create_task(scene.cache.watch())
        await until(lambda: scene.store.statuses)
        assert not scene.cache.offline
        scene.go_away()
        await until(lambda: scene.cache.offline)
        scene.come_back()
        await until(lambda: not scene.cache.offline)
        await scene.cache.fetch("a")
        scene.clock.now += 1000
        await until(lambda: len(scene.cache) == 0)
        watcher.cancel()
        await asyncio.wait([watcher])
        assert watcher.cancelled()

    asyncio.run(watch())
    scene.close()


def test_an_outage_that_a_fetch_noticed_is_probed_at_once() -> None:
    scene = Scene(probe_seconds=3600)

    async def watch() -> None:
        watcher = asyncio.create_task(scene.cache.watch())
        await until(lambda: scene.store.statuses == 1)
        await until(lambda: scene.cache._status_call is not None and scene.cache._status_call.done())
        scene.go_away()
        with pytest.raises(KeyStoreUnreachable):
            await scene.cache.fetch("a")
        scene.come_back()
        await until(lambda: scene.store.statuses >= 2 and not scene.cache.offline)
        watcher.cancel()
        await asyncio.wait([watcher])

    asyncio.run(watch())
    scene.close()


def test_a_store_that_hangs_is_away_and_is_not_asked_twice() -> None:
    scene = Scene(answer_seconds=0.001)

    async def probe() -> None:
        scene.store.gate.clear()
        for _ in range(3):
            await scene.cache.probe()
        assert isinstance(scene.cache.store_error, KeyStoreUnreachable)
        assert scene.store.statuses == 1
        scene.store.gate.set()
        async with asyncio.timeout(30):
            while scene.cache.offline:
                await scene.cache.probe()

    asyncio.run(probe())
    scene.close()


# --- any course of events ---

EVENTS = st.lists(
    st.one_of(
        st.floats(0, 40, allow_nan=False),
        st.sampled_from(["get", "fetch", "probe", "away", "back", "delete", "create"]),
    ),
    max_size=60,
)


@given(EVENTS, st.sampled_from([0, 5, 20]), st.sampled_from([0, 3, 12]), st.sampled_from([0, 15, 50]))
def test_whatever_happens_a_key_is_served_no_longer_and_no_shorter_than_it_may(
    events: list[float | str], any: float, unused: float, offline: float
) -> None:
    """What the cache serves follows from when the key was read, when it was used, and when the store was away."""
    scene = Scene(any=any, unused=unused, offline=offline)
    clock, cache, store = scene.clock, scene.cache, scene.store
    read = used = answered = clock.now
    noticed: float | None = None
    forgotten = True

    def may_serve() -> bool:
        now = answered if noticed is not None and offline else clock.now
        in_time = (not any or now - read < any) and (not unused or now - used < unused)
        return (
            not forgotten and in_time and (noticed is None or not offline or clock.now - max(noticed, read) < offline)
        )

    for event in events:
        match event:
            case float() | int():
                clock.now += event
            case "get":
                found = cache.get("a") is not None
                assert found is may_serve()
                if found:
                    used = clock.now
            case "fetch":
                calls = len(store.gets)
                try:
                    scene.fetch("a")
                    if len(store.gets) > calls and store.failure is None:
                        read = answered = clock.now
                        forgotten = False
                    else:
                        noticed = clock.now if cache.offline and noticed is None else noticed
                        assert may_serve()
                    used = clock.now
                except KeyNotFound:
                    forgotten = True
                    answered = clock.now
                except KeyStoreUnreachable:
                    noticed = clock.now if noticed is None else noticed
                    assert not may_serve()
            case "probe":
                scene.probe()
                if store.failure is None:
                    answered, noticed = clock.now, None
                else:
                    noticed = clock.now if noticed is None else noticed
                    forgotten = forgotten or not may_serve()
            case "away":
                scene.go_away()
            case "back":
                scene.come_back()
            case "delete":
                store.values.pop("a", None)
                cache.forget("a")
                forgotten = True
            case "create":
                store.values["a"] = b"A"
        assert cache.offline is (noticed is not None)
    scene.close()
