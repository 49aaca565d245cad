"""Pages of key names: complete, of one moment, and asked of the key store once."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from keswick.keystore import KeyStoreError
from keswick.server import listings
from keswick.server.listings import Listings


class Scene:
    def __init__(self, names: Iterable[str]) -> None:
        self.names = list(names)
        self.asked: list[str] = []
        self.now = 1000.0
        self.listings = Listings(self._ask, self._list, lambda: self.now)

    async def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(*arguments)

    def _list(self, prefix: str) -> list[str]:
        self.asked.append(prefix)
        return [name for name in self.names if name.startswith(prefix)]

    def page(self, prefix: str, start: str | None = None, most: int = 10) -> tuple[list[str], str]:
        return asyncio.run(self.listings.page(prefix, prefix if start is None else start, most))

    def all_pages(self, prefix: str) -> list[str]:
        names, following = self.page(prefix)
        while following:
            more, following = self.page(prefix, following)
            names += more
        return names


NAMES = [f"key-{number:03}" for number in range(95)]


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 21, 95])
def test_all_pages_together_are_the_whole_list_and_the_store_is_asked_once(count: int) -> None:
    scene = Scene([*reversed(NAMES[:count]), "other"])
    assert scene.all_pages("key-") == NAMES[:count]
    assert scene.asked == ["key-"]
    assert scene.all_pages("key-") == NAMES[:count]
    assert scene.asked == ["key-"] * 2  # a list that begins is of its own moment


def test_what_is_made_and_deleted_meanwhile_is_in_the_next_list() -> None:
    scene = Scene(NAMES)
    _, following = scene.page("key-")
    scene.names = ["key-050", "key-new"]
    assert scene.page("key-", following)[0] == NAMES[10:20]
    assert scene.all_pages("key-") == ["key-050", "key-new"]


def test_a_page_that_comes_late_or_from_elsewhere_is_asked_for_again() -> None:
    scene = Scene(NAMES)
    assert scene.page("key-", "key-050")[0] == NAMES[50:60]  # its first page came to another server
    scene.now += listings.KEPT_SECONDS
    assert scene.page("key-", "key-060")[0] == NAMES[60:70]
    assert len(scene.asked) == 2
    assert scene.page("key-", "key-0605")[0] == NAMES[61:71]  # after a name that is gone
    assert scene.page("key-", "z") == ([], "")


def test_the_lists_of_different_prefixes_are_apart() -> None:
    scene = Scene([*NAMES, *(f"k{number}" for number in range(30))])
    _, following = scene.page("k")
    assert scene.all_pages("key-") == NAMES
    assert scene.page("k", following)[0] == sorted(scene.names)[10:20]
    assert scene.asked == ["k", "key-"]


def test_what_is_kept_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(f"{letter}{number:03}" for letter in "abcdefghijkl" for number in range(20))
    for letter in "abcdefghijkl":
        scene.page(letter)
    assert len(scene.listings._kept) == listings.MOST_KEPT
    monkeypatch.setattr(listings, "MOST_NAMES", 50)
    scene.page("a")
    assert list(scene.listings._kept) == ["l", "a"]
    monkeypatch.setattr(listings, "MOST_NAMES", 10)
    assert scene.page("b") == ([f"b{number:03}" for number in range(10)], "b010")
    assert not scene.listings._kept


def test_what_nobody_continues_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "KEPT_SECONDS", 0.01)

    async def begin() -> None:
        kept = Listings(Scene(NAMES)._ask, lambda prefix: NAMES)
        await kept.page("key-", "key-", 10)
        assert kept._kept
        async with asyncio.timeout(30):
            while kept._kept:
                await asyncio.sleep(0.001)

    asyncio.run(begin())


def test_a_store_that_fails_is_told_and_nothing_is_kept() -> None:
    scene = Scene(NAMES)

    def fail(prefix: str) -> list[str]:
        raise KeyStoreError("denied")

    scene.listings = Listings(scene._ask, fail)
    with pytest.raises(KeyStoreError, match="denied"):
        scene.page("key-")
    assert not scene.listings._kept
