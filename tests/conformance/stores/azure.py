"""Azure has nothing that runs here: a vault and a service for tokens of our own."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from conformance.stores import Service, http_faults
from keswick.keystore import KeyStore, azure
from support.certificates import make
from support.fake_azure import APPLICATION, APPLICATION_SECRET, TENANT, FakeEntra, FakeVault
from support.fault_proxy import FaultProxy

SETTLE_SECONDS = 0.03
"""In a vault whose seconds are as much shorter."""


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    pair = make("p256", sans=["127.0.0.1"], eku=["server"])
    certificate, key = pair.write(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with (
        FakeEntra(pair) as entra,
        FakeVault(entra.tokens, tick=SETTLE_SECONDS / 1.5) as vault,
        FaultProxy(vault.port, tls=tls) as proxy,
        patch.object(azure, "SETTLE_SECONDS", SETTLE_SECONDS),
    ):

        def new_store(_: Path) -> KeyStore:
            vault.clear()
            return azure.open(
                {
                    "endpoint": proxy.endpoint,
                    "credentials.tenant_id": TENANT,
                    "credentials.client_id": APPLICATION,
                    "credentials.client_secret": APPLICATION_SECRET,
                    "authority": entra.endpoint,
                    "tls.ca": str(certificate),
                }
            )

        yield Service(new_store, http_faults(proxy), keeps=lambda name: "_" not in name, case_sensitive=False)


SERVICES = {"azure": start}
