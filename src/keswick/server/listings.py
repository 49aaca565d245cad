"""Lists of key names, page by page: the key store is asked once for all pages of a list.

What it answered is kept for the pages that are to come, for a minute and within bounds. A list is of the moment when
its first page was asked for, if its pages come to the same server; another server, or a later moment, asks again.
"""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

KEPT_SECONDS = 60.0
MOST_KEPT = 8
MOST_NAMES = 1_000_000
"""Of all lists that are kept, together."""

Ask = Callable[..., Awaitable[Any]]


class Listings:
    """`ask` runs a call of the key store, of which `list_names` yields the names with a prefix. All on the main
    thread."""

    def __init__(
        self, ask: Ask, list_names: Callable[[str], Iterable[str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._list_names = list_names
        self._clock = clock
        self._kept: dict[str, tuple[float, list[str]]] = {}
        """By prefix: until when, and the names, sorted. The oldest comes first."""

    async def page(self, prefix: str, start: str, most: int) -> tuple[list[str], str]:
        """At most `most` names with that prefix, sorted, from `start` on, and the name that follows them, or nothing.

        Raises KeyStoreError.
        """
        names = self._continued(prefix) if start != prefix else None
        if names is None:
            names = await self._ask(_sorted_names, self._list_names, prefix)
            if len(names) > most:
                self._keep(prefix, names)
        first = bisect_left(names, start)
        following = names[first + most] if first + most < len(names) else ""
        if not following:
            self._kept.pop(prefix, None)
        return names[first : first + most], following

    def _continued(self, prefix: str) -> list[str] | None:
        end, names = self._kept.get(prefix, (0.0, None))
        return names if self._clock() < end else None

    def _keep(self, prefix: str, names: list[str]) -> None:
        self._kept.pop(prefix, None)
        self._kept[prefix] = (self._clock() + KEPT_SECONDS, names)
        asyncio.get_running_loop().call_later(KEPT_SECONDS, self._drop)
        self._drop()

    def _drop(self) -> None:
        """What is kept for too long, or is too much."""
        now = self._clock()
        total = sum(len(kept) for _, kept in self._kept.values())
        for oldest, (end, kept) in list(self._kept.items()):
            if now < end and len(self._kept) <= MOST_KEPT and total <= MOST_NAMES:
                break
            total -= len(kept)
            del self._kept[oldest]


def _sorted_names(list_names: Callable[[str], Iterable[str]], prefix: str) -> list[str]:
    return sorted(list_names(prefix))
