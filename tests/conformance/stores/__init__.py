"""The key stores that the conformance suite runs over: a module for each kind, whose `SERVICES` start what it needs.

A service is started once for all tests. Of it they ask for stores, each empty and apart from all others, and for
faults, which a test turns on and off again.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from keswick.keystore import KeyStore, http
from keswick.keystore.table import KINDS
from support.fault_proxy import FAULTS, FaultProxy

Fault = Callable[[], AbstractContextManager[None]]


class Service(NamedTuple):
    new_store: Callable[[Path], KeyStore]
    """An empty store. The folder is the test's own."""
    faults: Mapping[str, Fault] = {}
    """By the words of `FAULTS` in the suite. A store of this machine has none."""
    slow: bool = False
    """Whether each call takes so long that lists of a thousand keys are made of fewer here."""
    listed_early: bool = False
    """Whether a key that is being created is listed before it can be read: the service takes two steps to make it."""
    keeps: Callable[[str], bool] = lambda name: True
    """Whether the service has room for a key of that name; otherwise `create` says so, and no such key is found."""
    case_sensitive: bool = True
    """Whether `key` and `KEY` can be kept beside each other; otherwise only the first one is found."""


Start = Callable[[Path], AbstractContextManager[Service]]


def services() -> dict[str, Start]:
    """By name, such as `vault-v2`. Every kind of the table has one."""
    found: dict[str, Start] = {}
    for kind in KINDS.values():
        found |= import_module(f"conformance.stores.{kind.module}").SERVICES
    return found


def http_faults(proxy: FaultProxy, *, without: Collection[str] = ()) -> Mapping[str, Fault]:
    """The faults of a service behind that proxy, for a store whose calls go through `keystore/http.py`; tries follow
    each other soon, and a call takes two seconds at most. `without`: what this service cannot do, since no answer of it
    is as strange."""

    def fault(name: str) -> Fault:
        @contextmanager
        def on() -> Iterator[None]:
            soon = patch.object(http, "pause_seconds", lambda: 0.01)
            with soon, patch.object(http, "CALL_SECONDS", 2.0), proxy.fault(name):
                yield

        return on

    return {name: fault(name) for name in FAULTS if name not in without}
