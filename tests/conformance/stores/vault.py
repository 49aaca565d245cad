"""A real OpenBao server. Each new store has an engine of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from conformance.stores import Service, Start, http_faults
from keswick.keystore import KeyStore, vault
from support.fault_proxy import FaultProxy
from support.openbao import OpenBao, settings


def service(version: int, *, prefix: str = "", namespace: str = "", transit: str = "") -> Start:
    @contextmanager
    def start(folder: Path) -> Iterator[Service]:
        with OpenBao(folder) as bao, FaultProxy(bao.plain_port) as proxy:
            if namespace:
                bao.new_namespace(namespace)
            if transit:
                bao.enable_transit(key=transit, namespace=namespace)
            numbers = count()
            engines: list[str] = []

            def new_store(folder: Path) -> KeyStore:
                engines.append(engine := f"kv-{next(numbers)}")
                bao.enable_kv(engine, version, namespace=namespace)
                section = bao.configuration(engine, version, prefix=prefix, namespace=namespace, transit=transit)
                return vault.open(settings({**section, "endpoint": proxy.endpoint}))

            def plant(name: str) -> None:
                path = "/".join(filter(None, (engines[-1], "data" if version == 2 else "", prefix, name)))
                secret = {"of": "somebody else"}
                bao.call("PUT", path, {"data": secret} if version == 2 else secret, namespace=namespace)

            yield Service(new_store, http_faults(proxy), plant=plant)

    return start


SERVICES = {
    "vault-v1": service(1, prefix="kes/keys"),
    "vault-v2": service(2),
    "vault-v2-transit": service(2, prefix="kes", namespace="team", transit="kes"),
}
