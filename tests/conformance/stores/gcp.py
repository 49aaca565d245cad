"""Google's Secret Manager: over REST as drongo imitates it, behind a proxy that fails on demand; over gRPC as our own
fake does."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from conformance.stores import Service, http_faults
from keswick.keystore import KeyStore, gcp
from support import fault_proxy
from support.drongo_server import start_drongo
from support.secret_manager import FAULTS, SecretManager


@contextmanager
def start_rest(folder: Path) -> Iterator[Service]:
    with start_drongo() as port, fault_proxy.FaultProxy(port) as proxy:
        projects = (f"project-{number}" for number in count())
        yield Service(
            lambda folder: gcp.open({"endpoint": proxy.endpoint, "project_id": next(projects)}),
            http_faults(proxy),
            listed_early=True,
        )


@contextmanager
def start_grpc(folder: Path) -> Iterator[Service]:
    with SecretManager(folder) as google:
        projects = (f"project-{number}" for number in count())

        def new_store(folder: Path) -> KeyStore:
            with google.trusted():
                return gcp.open({"endpoint": google.endpoint, "project_id": next(projects), **google.credentials})

        faults = http_faults(google, [name for name in FAULTS if name in fault_proxy.FAULTS])
        yield Service(new_store, faults, listed_early=True)


SERVICES = {"gcp-rest": start_rest, "gcp-grpc": start_grpc}
