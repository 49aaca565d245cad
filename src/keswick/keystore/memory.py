"""Keys in the memory of this process: for development, since all are lost at its end."""

import threading
from collections.abc import Mapping, Sequence

from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore
from keswick.keystore.section import Setting, Shape

SHAPE = Shape()

SETTINGS: tuple[Setting, ...] = ()


def open(settings: Mapping[str, str]) -> KeyStore:
    return MemoryStore()


class MemoryStore(KeyStore):
    description = "In Memory"
    atomic_create = True

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._changing = threading.Lock()

    def status(self) -> float:
        return 0.0

    def create(self, name: str, value: bytes) -> None:
        with self._changing:
            if name in self._values:
                raise KeyExists(name)
            self._values[name] = bytes(value)

    def get(self, name: str) -> bytes:
        try:
            return self._values[name]
        except KeyError:
            raise KeyNotFound(name) from None

    def delete(self, name: str) -> None:
        with self._changing:
            if self._values.pop(name, None) is None:
                raise KeyNotFound(name)

    def list(self, prefix: str) -> Sequence[str]:
        with self._changing:
            return [name for name in self._values if name.startswith(prefix)]

    def warnings(self) -> Sequence[str]:
        return []

    def close(self) -> None:
        """Nothing is held but the keys themselves."""
