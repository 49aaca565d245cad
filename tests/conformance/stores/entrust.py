from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.stores import Service, http_faults
from keswick.keystore import KeyStore, entrust
from support.fake_entrust import FakeEntrust
from support.fault_proxy import FaultProxy


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    with FakeEntrust() as service, FaultProxy(service.port) as proxy:

        def new_store(folder: Path) -> KeyStore:
            settings = {
                "endpoint": proxy.endpoint,
                "vault_id": service.vault,
                "box_id": service.new_box(),
                "credentials.username": service.username,
                "credentials.password": service.password,
            }
            return entrust.open(settings)

        def plant(name: str) -> None:
            [*service.boxes.values()][-1].secrets[name] = "no base64"

        yield Service(new_store, http_faults(proxy), plant=plant)


SERVICES = {"entrust": start}
