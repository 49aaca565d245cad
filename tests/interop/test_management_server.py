"""docs/management-server.md: its two configurations, started from the text of the page, keep what the page says."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from keswick import Client, KeyNotFound, NotAllowed
from keswick.client import RunTimePoliciesOff
from keswick.identity import APIKey, self_signed
from support.server import RunningServer, running
from support.transport import wait_until

PAGE = Path(__file__).parents[2] / "docs" / "management-server.md"
ADMIN, STORAGE, MONITORING = (APIKey.generate() for _ in range(3))
IDENTITIES = {
    "ADMIN_IDENTITY": ADMIN.identity,
    "STORAGE_IDENTITY": STORAGE.identity,
    "MONITORING_IDENTITY": MONITORING.identity,
}
EXPIRY = "any: 1m"
"""What the page promises, for which tests have no time."""


class Servers(NamedTuple):
    public: list[RunningServer]
    management: RunningServer

    def clients(self, key: APIKey) -> list[Client]:
        """Somebody's clients of the public servers."""
        return [server.client(key.text) for server in self.public]


@contextmanager
def serve(folder: Path, configuration: str, keys: Path) -> Iterator[RunningServer]:
    """A server with a configuration of the page, its files in `folder`, on a free port."""
    folder.mkdir()
    pair = self_signed("kes", lifetime=timedelta(days=1), dns=["localhost"], ips=["127.0.0.1"], server=True)
    (folder / "server.crt").write_text(pair.certificate_pem)
    (folder / "server.key").write_text(pair.key_pem())
    text = re.sub(r"^address: .*$", "address: 127.0.0.1:0", configuration, flags=re.MULTILINE)
    text = text.replace("/etc/kes", str(folder)).replace("/var/lib/kes/keys", str(keys)).replace(EXPIRY, "any: 1s")
    config = folder / "config.yaml"
    config.write_text(text)
    with running(["server", "--config", str(config)], folder, ADMIN, IDENTITIES) as server:
        yield server


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    public, management = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert EXPIRY in public
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        started = [
            stack.enter_context(serve(folder / name, configuration, folder / "keys"))
            for name, configuration in (("one", public), ("two", public), ("management", management))
        ]
        yield Servers(started[:2], started[2])


def test_a_key_that_operators_create_is_there_for_applications(servers: Servers) -> None:
    applications = servers.clients(STORAGE)
    for application in applications:
        with pytest.raises(KeyNotFound):  # which is not remembered
            application.generate_key("storage-1")
    with servers.management.client() as operator:
        operator.create_key("storage-1")
    sealed = [application.generate_key("storage-1") for application in applications]
    for application in applications:
        assert [application.decrypt("storage-1", key.ciphertext) for key in sealed] == [key.plaintext for key in sealed]


def test_nobody_is_the_admin_of_a_public_server(servers: Servers) -> None:
    for server, admin in zip(servers.public, servers.clients(ADMIN), strict=True):
        assert re.search(r"Admin +<disabled>", server.stdout)
        for call in (
            admin.status,
            lambda admin=admin: admin.create_key("storage-2"),
            lambda admin=admin: list(admin.list_keys()),
        ):
            with pytest.raises(NotAllowed, match="not authorized: insufficient permissions"):
                call()
        info, policy = admin.describe_self()
        assert (info.is_admin, policy) == (False, None)
        with pytest.raises(RunTimePoliciesOff):
            admin.write_policy("all", allow=["/v1/*"])


def test_applications_create_and_delete_nothing_and_reach_no_other_keys(servers: Servers) -> None:
    with servers.management.client() as operator:
        operator.create_key("payroll")
        for application in servers.clients(STORAGE):
            with pytest.raises(NotAllowed):
                application.create_key("storage-3")
            with pytest.raises(NotAllowed):
                application.delete_key("storage-1")
            with pytest.raises(NotAllowed):
                application.generate_key("payroll")
        with servers.management.client(STORAGE.text) as application, pytest.raises(NotAllowed):
            application.generate_key("storage-1")
        operator.delete_key("payroll")


def test_monitoring_sees_numbers_and_nothing_else(servers: Servers) -> None:
    for monitor in servers.clients(MONITORING):
        monitor.ready()
        assert monitor.metrics().total("kes_http_request_success") > 0
        with pytest.raises(NotAllowed):
            monitor.generate_key("storage-1")


def test_a_deleted_key_is_dead_everywhere_within_the_expiry_of_the_cache(servers: Servers) -> None:
    applications = servers.clients(STORAGE)
    with servers.management.client() as operator:
        operator.create_key("storage-short-lived")
        sealed = [application.generate_key("storage-short-lived").ciphertext for application in applications]
        operator.delete_key("storage-short-lived")
        with pytest.raises(KeyNotFound):
            operator.decrypt("storage-short-lived", sealed[0])

    def is_dead(application: Client) -> bool:
        try:
            application.decrypt("storage-short-lived", sealed[0])
        except KeyNotFound:
            return True
        return False

    for application in applications:
        wait_until(partial(is_dead, application))


def test_what_operators_do_is_recorded(servers: Servers) -> None:
    with servers.management.client() as operator:
        operator.create_key("storage-recorded")
    servers.management.wait_for('"path":"/v1/key/create/storage-recorded"')
    assert f'"identity":"{ADMIN.identity}"' in servers.management.line("/v1/key/create/storage-recorded")
