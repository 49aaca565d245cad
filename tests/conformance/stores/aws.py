"""moto, which imitates AWS, behind a proxy that fails on demand."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from unittest.mock import patch

from conformance.stores import Service, http_faults
from keswick.keystore import KeyStore, aws
from support.fault_proxy import FaultProxy
from support.moto_server import CREDENTIALS, start_moto


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    with start_moto() as port, FaultProxy(port) as proxy:
        regions = (f"region-{number}" for number in count())

        def new_store(folder: Path) -> KeyStore:
            with patch.object(aws, "TRIES", 2):
                return aws.open({"endpoint": proxy.endpoint, "region": next(regions), **CREDENTIALS})

        yield Service(new_store, http_faults(proxy))


SERVICES = {"aws": start}
