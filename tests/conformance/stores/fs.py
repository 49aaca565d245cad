from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.stores import Service
from keswick.keystore import KeyStore
from keswick.keystore.fs import MAX_VALUE, FSStore


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    stores: list[FSStore] = []

    def new_store(folder: Path) -> KeyStore:
        stores.append(FSStore(str(folder / "keys")))
        return stores[-1]

    def plant(name: str) -> None:
        Path(stores[-1].path, name).write_bytes(bytes(MAX_VALUE + 1))

    yield Service(new_store, plant=plant)


SERVICES = {"fs": start}
