"""What every key store must do, over all that `stores/` starts."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from conformance.stores import Service, services
from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, NotAKey
from keswick.keystore.memory import MemoryStore
from keswick.migration import Migration
from support.golden import cases
from support.transport import wait_until

STARTS = services()

FAULTS: dict[str, type[KeyStoreError]] = {
    "refused": KeyStoreUnreachable,
    "lost": KeyStoreUnreachable,
    "hanging": KeyStoreUnreachable,
    "cut": KeyStoreError,
    "denied": KeyStoreError,
    "throttled": KeyStoreError,
    "troubled": KeyStoreError,
    "away": KeyStoreUnreachable,
    "garbage": KeyStoreError,
    "empty": KeyStoreError,
    "wrong": KeyStoreError,
}
"""What may go wrong with a service, and what a store makes of it."""

VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Service]]:
    """Services by name, each started when it is first asked for."""
    started: dict[str, Service] = {}
    with ExitStack() as stack:

        def start(name: str) -> Service:
            if name not in started:
                started[name] = stack.enter_context(STARTS[name](tmp_path_factory.mktemp(name)))
            return started[name]

        yield start


@pytest.fixture(params=STARTS)
def service(request: pytest.FixtureRequest, start: Callable[[str], Service]) -> Service:
    return start(request.param)


@pytest.fixture
def store(service: Service, tmp_path: Path) -> Iterator[KeyStore]:
    store = service.new_store(tmp_path)
    yield store
    store.close()


def test_a_new_store_is_empty_and_well(store: KeyStore) -> None:
    assert list(store.list("")) == []
    assert store.status() >= 0
    assert bool(store.warnings()) is not store.atomic_create
    assert store.description


def test_what_was_created_is_got_back(store: KeyStore) -> None:
    store.create("one", VALUE)
    store.create("two", b"another")
    assert store.get("one") == VALUE
    assert store.get("two") == b"another"


@pytest.mark.parametrize("value", [bytes(range(32, 127)), b"x" * 4096, b"line\nline\r\n", b" "])
def test_a_value_comes_back_byte_for_byte(store: KeyStore, value: bytes) -> None:
    store.create("key", value)
    assert store.get("key") == value


def test_keys_of_every_release_come_back_byte_for_byte(store: KeyStore) -> None:
    stored = {case.file: case.stored_key for case in cases()}  # one of each
    assert len(stored) > 12
    for number, value in enumerate(stored.values()):
        store.create(f"key-{number}", value)
    for number, value in enumerate(stored.values()):
        assert store.get(f"key-{number}") == value


@pytest.mark.parametrize("name", ["a", "0", "_a", "A-b_C", "x" * 80])
def test_every_valid_name_can_be_kept(service: Service, store: KeyStore, name: str) -> None:
    if not service.keeps(name):
        with pytest.raises(KeyStoreError, match="name"):
            store.create(name, VALUE)
        for call in (store.get, store.delete):
            with pytest.raises(KeyNotFound):
                call(name)
        return
    store.create(name, VALUE)
    assert store.get(name) == VALUE
    assert list(store.list("")) == [name]
    store.delete(name)
    assert list(store.list("")) == []


def test_a_name_is_created_once(store: KeyStore) -> None:
    store.create("key", VALUE)
    with pytest.raises(KeyExists):
        store.create("key", b"another")
    assert store.get("key") == VALUE


def test_names_differ_by_case(service: Service, store: KeyStore) -> None:
    store.create("key", b"small")
    if not service.case_sensitive:
        with pytest.raises(KeyStoreError, match="case"):
            store.create("KEY", b"large")
        for call in (store.get, store.delete):
            with pytest.raises(KeyNotFound):
                call("KEY")
        assert store.get("key") == b"small"
        return
    store.create("KEY", b"large")
    assert (store.get("key"), store.get("KEY")) == (b"small", b"large")


def test_an_unknown_key_is_not_found(store: KeyStore) -> None:
    store.create("key", VALUE)
    with pytest.raises(KeyNotFound):
        store.get("ke")
    with pytest.raises(KeyNotFound):
        store.delete("keys")
    assert list(store.list("")) == ["key"]


def test_a_deleted_key_is_gone_and_its_name_is_free(store: KeyStore) -> None:
    store.create("key", VALUE)
    store.delete("key")
    with pytest.raises(KeyNotFound):
        store.get("key")
    with pytest.raises(KeyNotFound):
        store.delete("key")
    store.create("key", b"another")
    assert store.get("key") == b"another"


def test_what_is_no_key_is_told_from_what_fails(service: Service, store: KeyStore) -> None:
    if service.plant is None:
        return  # all that it lists can be a key, as far as a store sees it
    store.create("key", VALUE)
    service.plant("foreign")
    assert sorted(store.list("")) == ["foreign", "key"]
    for _ in range(2):
        with pytest.raises(NotAKey, match="foreign"):
            store.get("foreign")
    target = MemoryStore()
    report = Migration(store, target).run()
    assert report.complete
    assert "foreign" in report.foreign["foreign"]
    assert list(target.list("")) == ["key"]


def test_a_list_holds_the_names_with_the_prefix(store: KeyStore) -> None:
    for name in ("app", "app-1", "app-2", "ap", "App-3", "x-app-4"):
        store.create(name, VALUE)
    assert sorted(store.list("app")) == ["app", "app-1", "app-2"]
    assert sorted(store.list("app-2")) == ["app-2"]
    assert list(store.list("nothing")) == []
    assert sorted(store.list("")) == ["App-3", "ap", "app", "app-1", "app-2", "x-app-4"]


def test_a_long_list_is_complete(store: KeyStore) -> None:
    names = {f"key-{number}" for number in range(300)}  # more than a page of any store holds
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.create(name, VALUE), names))
    listed = list(store.list("key-"))
    assert len(listed) == len(names)
    assert set(listed) == names


def test_of_creators_at_once_exactly_one_wins(store: KeyStore) -> None:
    if not store.atomic_create:
        return  # and its warnings tell so
    threads = 16
    start = threading.Barrier(threads)

    def create(number: int) -> bool:
        start.wait()
        try:
            store.create("key", f"value {number}".encode())
        except KeyExists:
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        won = list(pool.map(create, range(threads)))
    assert won.count(True) == 1
    assert store.get("key") == f"value {won.index(True)}".encode()


def test_a_key_that_is_being_created_is_never_seen_in_part(service: Service, store: KeyStore) -> None:
    value = b"x" * 20_000
    names = [f"key-{number}" for number in range(20)]
    seen: dict[str, int] = {}

    def read_until_all_are_there() -> None:
        while len(seen) < len(names):
            for name in store.list(""):
                with suppress(*[KeyNotFound] if service.listed_early else []):
                    seen.setdefault(name, len(store.get(name)))

    reader = threading.Thread(target=read_until_all_are_there, daemon=True)
    reader.start()
    for name in names:
        store.create(name, value)
    reader.join(60)
    assert seen == dict.fromkeys(names, len(value))


def test_close_may_be_called_twice(store: KeyStore) -> None:
    store.create("key", VALUE)
    store.close()
    store.close()


def test_close_gives_back_threads_and_connections(service: Service, tmp_path: Path) -> None:
    """Once libraries, and the service, have all that they keep for good."""
    closed: list[KeyStore] = []

    def held() -> tuple[int, int]:
        threads = [thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread)]
        return len(threads), len(os.listdir("/proc/self/fd"))

    def leaves_nothing(round: int) -> bool:
        threads, files = held()
        store = service.new_store(tmp_path / str(round))
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: store.create(f"key-{number}", VALUE), range(4)))
        store.status()
        store.close()
        closed.append(store)  # it is not its end that gives them back
        with suppress(AssertionError):
            wait_until(lambda: held()[0] <= threads and held()[1] <= files, seconds=3)
            return True
        return False

    assert any(map(leaves_nothing, range(4)))


CALLS: dict[str, Callable[[KeyStore], object]] = {
    "get": lambda store: store.get("key"),
    "create": lambda store: store.create("new", VALUE),
    "delete": lambda store: store.delete("key"),
    "list": lambda store: list(store.list("")),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_and_passes(service: Service, store: KeyStore, fault: str, call: str) -> None:
    """No fault looks like a key that is not there or is there already, shows a value, or takes longer than a client
    waits; and when it is over, the same store goes on."""
    if fault not in service.faults:
        return  # a store of this machine, or one that cannot fail so
    store.create("key", VALUE)
    begin = time.monotonic()
    with service.faults[fault](), pytest.raises(FAULTS[fault]) as told:
        CALLS[call](store)
    assert time.monotonic() - begin < 15
    assert len(str(told.value)) > 20
    assert not isinstance(told.value, NotAKey)
    assert VALUE.decode() not in str(told.value)
    assert "8f58O260" not in str(told.value)
    if fault == "lost" and call == "delete":
        return  # it was carried out
    assert store.get("key") == VALUE
    assert "key" in list(store.list(""))


def test_a_store_that_is_away_says_so_and_comes_back(service: Service, store: KeyStore) -> None:
    if "refused" not in service.faults:
        return
    with service.faults["refused"](), pytest.raises(KeyStoreUnreachable):
        store.status()
    assert store.status() >= 0
