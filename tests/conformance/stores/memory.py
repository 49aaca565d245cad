from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.stores import Service
from keswick.keystore.memory import MemoryStore


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    yield Service(lambda folder: MemoryStore())


SERVICES = {"memory": start}
