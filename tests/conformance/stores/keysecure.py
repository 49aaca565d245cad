import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.stores import Service, http_faults
from keswick.keystore import KeyStore, keysecure
from support.fake_keysecure import FakeKeySecure
from support.fault_proxy import FaultProxy


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    numbers = itertools.count()
    with FakeKeySecure() as service, FaultProxy(service.port) as proxy:

        def new_store(folder: Path) -> KeyStore:
            domain = f"domain-{next(numbers)}"
            credentials = {"credentials.token": service.new_user(domain), "credentials.domain": domain}
            return keysecure.open({"endpoint": proxy.endpoint, **credentials})

        def plant(name: str) -> None:
            [*service.domains.values()][-1].secrets[name] = {"name": name, "material": None}

        yield Service(new_store, http_faults(proxy), plant=plant)


SERVICES = {"keysecure": start}
