"""The client that waits, against a real server."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from keswick.client import (
    Client,
    ClientRefused,
    DataKey,
    DecryptionFailed,
    KeyExists,
    KeyNotFound,
    NotAllowed,
    PolicyNotFound,
)
from keswick.identity import APIKey
from support.server import SOURCES, RunningServer, start_server

MEMBER = APIKey.generate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    policy = {"allow": ["/v1/key/create/m*"], "deny": ["/v1/key/create/mine"], "identities": [MEMBER.identity]}
    with start_server(tmp_path_factory.mktemp("server"), policy={"members": policy}) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as client:
        yield client
        for name in list(client.list_keys()):
            client.delete_key(name)


def test_keys(client: Client) -> None:
    client.create_key("k")
    with pytest.raises(KeyExists, match="key already exists; use the key that is there"):
        client.create_key("k")
    client.import_key("imported", bytes(32), "ChaCha20")
    assert list(client.list_keys()) == ["imported", "k"]
    assert client.describe_key("imported").algorithm == "ChaCha20"
    data_key = client.generate_key("k", b"context")
    assert client.decrypt("k", data_key.ciphertext, b"context") == data_key.plaintext
    with pytest.raises(DecryptionFailed):
        client.decrypt("k", data_key.ciphertext, b"another")
    assert client.decrypt("imported", client.encrypt("imported", b"")) == b""
    assert len(client.hmac("k", b"message")) == 32
    client.delete_key("k")
    with pytest.raises(KeyNotFound, match="key does not exist"):
        client.describe_key("k")


def test_policies_and_identities(client: Client, server: RunningServer) -> None:
    me, policy = client.describe_self()
    assert (me.is_admin, policy) == (True, None)
    assert list(client.list_policies()) == ["members"]
    assert client.describe_policy("members").created_by == me.identity
    rules = client.read_policy("members")
    assert (rules.allow, rules.deny) == (("/v1/key/create/m*",), ("/v1/key/create/mine",))
    with pytest.raises(PolicyNotFound):
        client.read_policy("others")
    assert sorted(client.list_identities()) == sorted([me.identity, MEMBER.identity])
    assert client.describe_identity(MEMBER.identity).policy == "members"
    with server.client(MEMBER.text) as member:
        assert member.describe_self()[1] == rules
        member.create_key("made-by-a-member")
        with pytest.raises(NotAllowed, match="insufficient permissions; let a policy with this client's identity"):
            member.create_key("mine")


def test_the_server_itself(client: Client) -> None:
    client.ready()
    assert not client.status().keystore_unreachable
    assert client.version().version
    assert {api.path for api in client.apis()} > {"/version", "/v1/key/create/"}
    before = client.metrics().total("kes_http_request_success")
    client.ready()
    assert client.metrics().total("kes_http_request_success") >= before + 2
    assert client.metrics().buckets("kes_http_response_time")[-1][1] > 0


def test_who_shows_no_certificate_or_an_unknown_one(server: RunningServer) -> None:
    with Client(server.endpoint, ca_file=server.ca_file) as nobody, pytest.raises(ClientRefused, match="demands"):
        nobody.version()
    with server.client(APIKey.generate().text) as stranger, pytest.raises(NotAllowed):
        stranger.status()


@pytest.mark.parametrize("http2", [True, False])
def test_it_speaks_both_versions_of_http(server: RunningServer, http2: bool) -> None:
    with server.client(http2=http2) as client:
        client.ready()
        client.ready()


def test_pages_of_thousands_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    with start_server(tmp_path) as server, server.client() as client:
        client.create_key("n")
        for number in range(3000):
            (folder / f"n{number:04}").hardlink_to(folder / "n")
        names = list(client.list_keys("n"))
        assert names == ["n", *(f"n{number:04}" for number in range(3000))]
        assert list(client.list_keys("n29*")) == [f"n{number:04}" for number in range(2900, 3000)]
        assert next(client.list_keys("n1")) == "n1000"


def test_threads_share_a_client(client: Client) -> None:
    client.create_key("k")

    def call(_: int) -> bool:
        plaintext, ciphertext = client.generate_key("k")
        return client.decrypt("k", ciphertext) == plaintext

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(call, range(400)))


def test_a_closed_client_connects_again(client: Client) -> None:
    client.ready()
    client.close()
    client.ready()


def test_a_connection_that_the_server_ended_is_not_missed(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        address = f"127.0.0.1:{server.port}"
        with server.client() as client:
            client.ready()
            server.stop()
            with start_server(tmp_path, address=address, admin={"identity": APIKey.parse(server.api_key).identity}):
                client.create_key("k")


def test_secrets_are_not_shown(client: Client) -> None:
    assert "secret" not in repr(DataKey(b"secret", b"sealed"))
    assert repr(client) == f"Client({client.endpoints[0]})"


# --- log streams ---


def test_audit_events_come_as_they_happen(client: Client) -> None:
    with client.audit_log() as events:
        client.create_key("k")
        with pytest.raises(KeyNotFound):
            client.describe_key("none")
        created = next(event for event in events if event.path == "/v1/key/create/k")
        refused = next(events)
    identity = client.describe_self()[0].identity
    assert (created.status, created.identity, created.ip) == (200, identity, "127.0.0.1")
    assert 0 <= created.response_time < 15
    assert created.raw.startswith('{"time":"')
    assert (refused.path, refused.status) == ("/v1/key/describe/none", 404)


def test_error_events_come_as_they_happen(server: RunningServer, client: Client) -> None:
    with client.error_log() as events, socket.create_connection(("127.0.0.1", server.port)) as stranger:
        stranger.sendall(b"\x00" * 100)
        event = next(events)
    assert "tls: handshake error from 127.0.0.1" in event.message
    assert event.raw.startswith('{"message":"')


def test_a_stream_that_may_not_be_read(server: RunningServer) -> None:
    with server.client(MEMBER.text) as member, pytest.raises(NotAllowed):
        member.audit_log()


def test_a_stream_ends_when_the_server_ends(tmp_path: Path) -> None:
    with start_server(tmp_path) as server, server.client() as client, client.audit_log() as events:
        client.ready()
        assert next(event.path for event in events if event.path != "/v1/log/audit") == "/v1/ready"
        server.process.send_signal(signal.SIGTERM)
        assert list(events) == []


def test_a_stream_can_be_closed_while_a_thread_waits(client: Client) -> None:
    events = client.error_log()
    seen: list[object] = []
    thread = threading.Thread(target=lambda: seen.extend(events))
    thread.start()
    events.close()
    thread.join(20)
    assert not thread.is_alive()
    assert seen == []
    events.close()
    with pytest.raises(StopIteration):
        next(events)


# --- interrupts ---

WAITING = """
from keswick import Client
client = Client.from_environment({timeout})
try:
    print("ready", flush=True)
    {call}
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("call", ["client.ready()", "next(client.error_log())"])
def test_an_interrupt_ends_a_call(server: RunningServer, call: str, tmp_path: Path) -> None:
    """The server is stopped, so that nothing is answered."""
    environment = {**os.environ, **server.environment, "PYTHONPATH": SOURCES}
    server.process.send_signal(signal.SIGSTOP)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", WAITING.format(timeout="timeout=None, connect_timeout=60", call=call)],
            env=environment,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == b"interrupted\n"
        assert process.returncode == 0
    finally:
        server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("dialect", ["2021", "2022", "2023", "2025"])
@pytest.mark.parametrize("trace", [False, True])
def test_response_times_are_seconds_in_every_dialect(tmp_path: Path, dialect: str, trace: bool) -> None:
    with start_server(tmp_path, compatibility=dialect, tls={"auth": "off"}) as server, server.client() as client:
        with client.audit_log(trace=trace) as events:
            client.version()
            event = next(events)
            while event.path != "/version":
                event = next(events)
        assert 0 <= event.response_time < 1
        sent = json.loads(event.raw)["response"]["time"]
        in_milliseconds = dialect == "2025" and not trace
        assert event.response_time == sent / (1000 if in_milliseconds else 1_000_000_000)
        if dialect == "2023":
            assert sent % 1000 == 0
