from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.stores import Service, http_faults
from keswick.keystore import KeyStore, fortanix
from support.fake_fortanix import FakeFortanix
from support.fault_proxy import FaultProxy


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    with FakeFortanix() as service, FaultProxy(service.port) as proxy:

        def new_store(folder: Path) -> KeyStore:
            return fortanix.open({"endpoint": proxy.endpoint, "credentials.key": service.new_app()})

        yield Service(new_store, http_faults(proxy))


SERVICES = {"fortanix": start}
