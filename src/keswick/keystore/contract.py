"""The contract of a key store: five blocking calls on bytes, and close.

A store maps names to values (the text of a stored key) and looks at neither. It may be called from several threads at
once. The server sorts, caches and parses; a store only keeps.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol


class KeyStoreError(Exception):
    """The store answered, but not as it should: no permission, a broken disk, an unexpected reply. Says what to do."""


class KeyStoreUnreachable(KeyStoreError):
    """The store cannot be reached now: it is away, not wrong."""


class NotAKey(KeyStoreError):
    """What is kept under that name is no key: somebody else's secret, or one without a value. Says what to do."""


class KeyExists(Exception):
    """`create` found a key of that name."""


class KeyNotFound(Exception):
    """`get` or `delete` found no key of that name."""


class KeyNotShown(KeyNotFound):
    """The same, said by a service that says so of what may not be read, too."""


class KeyStore(Protocol):
    """What every store can do. All calls raise KeyStoreError (or KeyStoreUnreachable) besides what they name."""

    description: str
    """For the banner, such as `Filesystem: /var/lib/kes/keys`."""

    atomic_create: bool
    """Whether of two servers that create one name at once exactly one succeeds."""

    def status(self) -> float:
        """How long the store took to answer, in seconds."""

    def create(self, name: str, value: bytes) -> None:
        """Keep `value` under `name`, whole or not at all; after the return it is durable. Raises KeyExists."""

    def get(self, name: str) -> bytes:
        """Raises KeyNotFound and NotAKey."""

    def delete(self, name: str) -> None:
        """Raises KeyNotFound."""

    def list(self, prefix: str) -> Iterable[str]:
        """All names that begin with `prefix`, in any order."""

    def warnings(self) -> Sequence[str]:
        """What an operator should know about the store at the start, one sentence each, such as exposed key files."""

    def close(self) -> None:
        """Give back what is held. Idempotent."""
