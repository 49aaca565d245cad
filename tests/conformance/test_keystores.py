"""What every key store must do. A new store adds a line to STORES."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keswick.keystore import KeyExists, KeyNotFound, KeyStore
from keswick.keystore.fs import FSStore
from keswick.keystore.memory import MemoryStore

STORES: dict[str, Callable[[Path], KeyStore]] = {
    "fs": lambda folder: FSStore(str(folder / "keys")),
    "memory": lambda folder: MemoryStore(),
}

VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyStore]:
    store = STORES[request.param](tmp_path)
    yield store
    store.close()


def test_a_new_store_is_empty_and_well(store: KeyStore) -> None:
    assert list(store.list("")) == []
    assert store.status() >= 0
    assert list(store.warnings()) == []
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


@pytest.mark.parametrize("name", ["a", "0", "_a", "A-b_C", "x" * 80])
def test_every_valid_name_can_be_kept(store: KeyStore, name: str) -> None:
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


def test_names_differ_by_case(store: KeyStore) -> None:
    store.create("key", b"small")
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


def test_a_list_holds_the_names_with_the_prefix(store: KeyStore) -> None:
    for name in ("app", "app-1", "app-2", "ap", "App-3", "x-app-4"):
        store.create(name, VALUE)
    assert sorted(store.list("app")) == ["app", "app-1", "app-2"]
    assert sorted(store.list("app-2")) == ["app-2"]
    assert list(store.list("nothing")) == []
    assert sorted(store.list("")) == ["App-3", "ap", "app", "app-1", "app-2", "x-app-4"]


def test_a_long_list_is_complete(store: KeyStore) -> None:
    names = {f"key-{number}" for number in range(1100)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store.create(name, VALUE), names))
    listed = list(store.list("key-"))
    assert len(listed) == len(names)
    assert set(listed) == names


def test_of_creators_at_once_exactly_one_wins(store: KeyStore) -> None:
    assert store.atomic_create
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


def test_a_key_that_is_being_created_is_never_seen_in_part(store: KeyStore) -> None:
    value = b"x" * 100_000
    names = [f"key-{number}" for number in range(50)]
    seen: dict[str, int] = {}

    def read_until_all_are_there() -> None:
        while len(seen) < len(names):
            for name in store.list(""):
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
