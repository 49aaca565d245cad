"""A plugin, which nobody publishes any more: our own, written from the protocol."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.stores import Service, http_faults
from keswick.keystore import KeyStore, generic
from support.certificates import make
from support.fake_plugin import FakePlugin
from support.fault_proxy import FaultProxy


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    certificate, key = make("p256", sans=["127.0.0.1"], eku=["server"]).write(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with FakePlugin() as plugin, FaultProxy(plugin.port, tls=tls) as proxy:

        def new_store(_: Path) -> KeyStore:
            plugin.values.clear()
            return generic.open({"endpoint": proxy.endpoint, "tls.ca": str(certificate)})

        yield Service(new_store, http_faults(proxy))


SERVICES = {"generic": start}
