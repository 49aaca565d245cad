from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.stores import Service
from keswick.keystore.fs import FSStore


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    yield Service(lambda folder: FSStore(str(folder / "keys")))


SERVICES = {"fs": start}
