"""The key stores that the conformance suite runs over: a module for each kind, whose `SERVICES` start what it needs.

A service is started once for all tests. Of it they ask for stores, each empty and apart from all others, and for
faults, which a test turns on and off again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple, Protocol
from unittest.mock import patch

from keswick.keystore import KeyStore, http
from keswick.keystore.table import KINDS
from support.fault_proxy import FAULTS

Fault = Callable[[], AbstractContextManager[None]]


class Service(NamedTuple):
    new_store: Callable[[Path], KeyStore]
    """An empty store. The folder is the test's own."""
    faults: Mapping[str, Fault] = {}
    """By the words of `FAULTS` in the suite. A store of this machine has none."""
    listed_early: bool = False
    """Whether a key that is being created is listed before it can be read: the service takes two steps to make it."""
    keeps: Callable[[str], bool] = lambda name: True
    """Whether the service has room for a key of that name; otherwise `create` says so, and no such key is found."""
    plant: Callable[[str], object] | None = None
    """Put under that name, in the newest store, what the store itself knows to be no key."""
    case_sensitive: bool = True
    """Whether `key` and `KEY` can be kept beside each other; otherwise only the first one is found."""


Start = Callable[[Path], AbstractContextManager[Service]]


def services() -> dict[str, Start]:
    """By name, such as `vault-v2`. Every kind of the table has one."""
    found: dict[str, Start] = {}
    for kind in KINDS.values():
        found |= import_module(f"conformance.stores.{kind.module}").SERVICES
    return found


HANGING_SECONDS = 0.3
"""The time that a call is given, instead of twelve seconds, while its service hangs."""


class Faulty(Protocol):
    def fault(self, name: str) -> AbstractContextManager[None]: ...


def http_faults(service: Faulty, names: Iterable[str] = FAULTS) -> Mapping[str, Fault]:
    """The faults of that service, or of a proxy before it, for a store whose calls go through `keystore/http.py`; tries
    follow each other soon, and a call takes two seconds at most."""

    def fault(name: str) -> Fault:
        @contextmanager
        def on() -> Iterator[None]:
            soon = patch.object(http, "pause_seconds", lambda: 0.01)
            seconds = HANGING_SECONDS if name == "hanging" else 2.0
            with soon, patch.object(http, "CALL_SECONDS", seconds), service.fault(name):
                yield

        return on

    return {name: fault(name) for name in names}
