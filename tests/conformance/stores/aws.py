"""moto, which imitates AWS, behind a proxy that fails on demand."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from conformance.stores import Service, http_faults
from keswick.keystore import KeyStore, aws
from support.fault_proxy import FaultProxy
from support.moto_server import CREDENTIALS, start_moto


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    with start_moto() as port, FaultProxy(port) as proxy:
        stores: list[aws.AWSStore] = []

        def new_store(folder: Path) -> KeyStore:
            region = f"region-{len(stores)}"
            with patch.object(aws, "TRIES", 2):
                stores.append(aws.AWSStore({"endpoint": proxy.endpoint, "region": region, **CREDENTIALS}))
            return stores[-1]

        def plant(name: str) -> None:
            stores[-1]._call("create_secret", time.monotonic() + 10, Name=name)

        yield Service(new_store, http_faults(proxy), plant=plant)


SERVICES = {"aws": start}
