"""Whether a page of the service begins with the name that it is to start at, or after it, is not known: both ways."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.stores import Service, Start, http_faults
from keswick.keystore import KeyStore, fortanix
from support.fake_fortanix import FakeFortanix
from support.fault_proxy import FaultProxy


def service(*, inclusive: bool) -> Start:
    @contextmanager
    def start(folder: Path) -> Iterator[Service]:
        with FakeFortanix(inclusive=inclusive) as service, FaultProxy(service.port) as proxy:

            def new_store(folder: Path) -> KeyStore:
                return fortanix.open({"endpoint": proxy.endpoint, "credentials.key": service.new_app()})

            def plant(name: str) -> None:
                sobject = {"obj_type": "OPAQUE", "name": name, "kid": name, "value": "no base64", "enabled": True}
                [*service.accounts.values()][-1].sobjects[name] = sobject

            yield Service(new_store, http_faults(proxy), plant=plant)

    return start


SERVICES = {"fortanix": service(inclusive=True), "fortanix-exclusive": service(inclusive=False)}
