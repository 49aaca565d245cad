"""Whom a client trusts, who takes it, and what it says when there is no connection."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keswick.client import (
    AsyncClient,
    Client,
    ClientRefused,
    ConnectionFailed,
    NotAllowed,
    ServerNameMismatch,
    ServerNotTrusted,
    ServerUnreachable,
    TimedOut,
)
from keswick.identity import APIKey, certificate_for
from support.certificates import make
from support.fake_server import Answer, fake_server
from support.sockets import answer_with, free_port, listening, tls

API_KEY = APIKey.generate()


def test_a_server_that_is_not_there() -> None:
    endpoint = f"https://127.0.0.1:{free_port()}"
    with pytest.raises(ServerUnreachable, match=f"cannot connect to {endpoint}: connection refused; does a server run"):
        Client(endpoint, retries=0).version()


def test_an_unknown_certificate_is_refused_with_advice(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path) as server,
        Client(server.endpoint) as client,
        pytest.raises(ServerNotTrusted, match="KES_CA_FILE"),
    ):
        client.ready()
    assert server.calls == []


@pytest.mark.parametrize(
    ("days", "words"),
    [((-3, -1), "has expired: the server needs a new one"), ((1, 3), "is not valid yet: see whether")],
)
def test_a_certificate_out_of_its_time_is_called_so(tmp_path: Path, days: tuple[float, float], words: str) -> None:
    with (
        fake_server(tmp_path, days=days) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
        pytest.raises(ServerNotTrusted, match=words),
    ):
        client.ready()


def test_a_name_that_nobody_has() -> None:
    with pytest.raises(ServerUnreachable, match=r"cannot connect to https://nobody\.invalid:443: ."):
        Client("nobody.invalid", retries=0).ready()


@pytest.mark.parametrize("sans", [("example.com",), ("10.9.8.7",)])
def test_a_certificate_for_another_name_is_refused(tmp_path: Path, sans: tuple[str, ...]) -> None:
    with (
        fake_server(tmp_path, sans=sans) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
        pytest.raises(ServerNameMismatch, match=r"not valid for '127\.0\.0\.1'"),
    ):
        client.ready()


def test_verification_can_be_switched_off(tmp_path: Path) -> None:
    with fake_server(tmp_path, sans=("example.com",)) as server, Client(server.endpoint, verify=False) as client:
        client.ready()


def test_ssl_cert_file_names_roots_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_server(tmp_path) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_file))
        with Client(server.endpoint) as client:
            client.ready()


def test_a_ca_file_is_all_that_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, _ = make("p256").write(tmp_path, "other")
    with fake_server(tmp_path) as server:
        monkeypatch.setenv("SSL_CERT_FILE", str(server.ca_file))
        with Client(server.endpoint, ca_file=other) as client, pytest.raises(ServerNotTrusted):
            client.ready()


def test_a_folder_of_authorities(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="no PEM certificate to trust"):
            Client(server.endpoint, ca_file=tmp_path / "empty")
        with Client(server.endpoint, ca_file=tmp_path) as client:
            client.ready()


def test_a_server_that_demands_a_certificate(tmp_path: Path) -> None:
    pair = certificate_for(API_KEY)
    client_ca = tmp_path / "client-ca.crt"
    client_ca.write_text(pair.certificate_pem)
    with fake_server(tmp_path, client_ca=client_ca) as server:
        with Client(server.endpoint, ca_file=server.ca_file) as client, pytest.raises(ClientRefused, match="demands"):
            client.ready()
        with (
            Client(server.endpoint, api_key=APIKey.generate(), ca_file=server.ca_file) as client,
            pytest.raises(ClientRefused, match="does not accept the client certificate"),
        ):
            client.ready()


def test_a_reply_that_breaks_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path, lambda *_: Answer(body=b"{}", missing=1)) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
        pytest.raises(ConnectionFailed, match="closed the connection"),
    ):
        client.status()


def test_a_server_without_tls_is_called_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises(ConnectionFailed, match="does not speak TLS"):
                Client(f"127.0.0.1:{listener.getsockname()[1]}").ready()
        finally:
            thread.join()


def test_a_server_that_is_too_long_about_a_handshake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        with (
            Client(endpoint, connect_timeout=0.1) as client,
            pytest.raises(TimedOut, match="does not let anyone connect in time"),
        ):
            client.ready()


def test_a_server_whose_answer_takes_too_long(tmp_path: Path) -> None:
    answered = threading.Event()

    def reply(method: str, path: str) -> Answer:
        answered.wait(20)
        return Answer()

    with fake_server(tmp_path, reply) as server, Client(server.endpoint, ca_file=server.ca_file, timeout=0.1) as client:
        with pytest.raises(TimeoutError, match="does not answer in time") as caught:
            client.ready()
        answered.set()
        assert isinstance(caught.value, ConnectionFailed)
        assert caught.value.sent
        assert len(server.calls) == 1  # what took too long is not asked again


@contextmanager
def endless_refusal(piece: bytes, pause: float) -> Iterator[str]:
    """An endpoint that refuses everything and never comes to the end of its words."""
    ended = threading.Event()

    def script(connection: socket.socket) -> None:
        answer_with(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\n\r\n")(connection)
        while not ended.wait(pause):
            connection.sendall(piece)

    with listening(tls(make("p256", sans=["127.0.0.1"]), script)) as port:
        yield f"127.0.0.1:{port}"
        ended.set()


@pytest.mark.parametrize("way", ["waiting", "asyncio"])
def test_a_log_that_is_refused_without_an_end(way: str) -> None:
    async def first(client: AsyncClient) -> None:
        async with client:
            await anext(client.audit_log())

    def ask(endpoint: str, timeout: float) -> None:
        if way == "asyncio":
            asyncio.run(first(AsyncClient(endpoint, verify=False, timeout=timeout)))
        with Client(endpoint, verify=False, timeout=timeout) as client:
            client.audit_log()

    with endless_refusal(b"x" * 65536, 0) as endpoint, pytest.raises(NotAllowed, match="HTTP status 403 Forbidden"):
        ask(endpoint, 20)
    with endless_refusal(b"x", 0.05) as endpoint, pytest.raises(TimedOut, match="does not answer in time"):
        ask(endpoint, 0.3)


def test_a_connection_that_ended_while_idle_is_replaced(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path, lambda *_: Answer(close=True)) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
    ):
        for _ in range(3):
            client.ready()
        assert len(server.peers) == 3
