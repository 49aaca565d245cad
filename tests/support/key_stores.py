"""What tests of key stores have in common."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

from keswick.keystore import KeyStore
from support.server import RunningServer

P = ParamSpec("P")
S = TypeVar("S", bound=KeyStore)


@contextmanager
def closing_all(open: Callable[P, S]) -> Iterator[Callable[P, S]]:
    """`open`; the stores that it has opened are closed in the end."""
    with ExitStack() as stack:

        def open_one(*arguments: P.args, **options: P.kwargs) -> S:
            store = open(*arguments, **options)
            stack.callback(store.close)
            return store

        yield open_one


def use(server: RunningServer, *, midway: Callable[[], object] = lambda: None) -> None:
    """As clients do; `my-key` is left in its store. `midway`: what happens to the store."""
    with server.client() as client:
        client.create_key("my-key")
        sealed = client.encrypt("my-key", b"plaintext")
        assert client.decrypt("my-key", sealed) == b"plaintext"
        midway()
        client.create_key("another")
        assert list(client.list_keys()) == ["another", "my-key"]
        client.delete_key("another")
        client.ready()
