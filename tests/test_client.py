"""The client library against a scripted server: what it sends, what it makes of replies, and how it fails."""

import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from keswick import client as client_module
from keswick.client import (
    APIError,
    Client,
    ClientRefused,
    ConnectionFailed,
    DataKey,
    Endpoint,
    KeyInfo,
    ServerNameMismatch,
    ServerNotTrusted,
)
from keswick.identity import APIKey, certificate_for
from support.certificates import make
from support.fake_server import Answer, fake_server
from support.server import start_server

API_KEY = APIKey.generate()


def answers(table: dict[str, object]) -> Callable[[str, str], Answer]:
    """A server that answers a path with a JSON value."""
    return lambda method, path: Answer(body=json.dumps(table[path]).encode() + b"\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- what is sent and understood ---


def test_key_calls_are_sent_as_the_servers_read_them(tmp_path: Path) -> None:
    replies = {
        "/v1/key/create/k": {},
        "/v1/key/import/k": {},
        "/v1/key/delete/k": {},
        "/v1/key/describe/k": {"name": "k", "algorithm": "AES256", "created_at": "2026-01-02T03:04:05.6Z"},
        "/v1/key/encrypt/k": {"ciphertext": "Yw=="},
        "/v1/key/decrypt/k": {"plaintext": None},
        "/v1/key/generate/k": {"plaintext": "cA==", "ciphertext": "Yw=="},
        "/v1/key/hmac/k": {"hmac": "aA=="},
    }
    with fake_server(tmp_path, answers(replies)) as server:
        with Client(server.endpoint, api_key=API_KEY, ca_file=server.ca_file) as client:
            client.create_key("k")
            client.import_key("k", b"key", "ChaCha20")
            client.delete_key("k")
            assert client.describe_key("k") == KeyInfo("k", "AES256", "2026-01-02T03:04:05.6Z", "")
            assert client.encrypt("k", b"p", b"x") == b"c"
            assert client.decrypt("k", b"c") == b""
            assert client.generate_key("k") == DataKey(b"p", b"c")
            assert client.hmac("k", b"m") == b"h"
        assert server.calls == [
            "POST /v1/key/create/k",
            'POST /v1/key/import/k {"key": "a2V5", "cipher": "ChaCha20", '
            '"bytes": "a2V5", "algorithm": "XCHACHA20-POLY1305"}',
            "DELETE /v1/key/delete/k",
            "GET /v1/key/describe/k",
            'POST /v1/key/encrypt/k {"plaintext": "cA==", "context": "eA=="}',
            'POST /v1/key/decrypt/k {"ciphertext": "Yw==", "context": ""}',
            'POST /v1/key/generate/k {"context": ""}',
            'POST /v1/key/hmac/k {"message": "bQ=="}',
        ]
        assert len(server.peers) == 1  # the connection is kept


def test_the_plaintext_of_a_data_key_is_not_shown() -> None:
    assert "secret" not in repr(DataKey(b"secret", b"sealed"))


def test_names_are_one_percent_encoded_segment(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server, Client(server.endpoint, ca_file=server.ca_file) as client:
        client.create_key("a/b ?#%é\udcff")
        client.create_key("...")
        assert server.calls == ["POST /v1/key/create/a%2Fb%20%3F%23%25%C3%A9%FF", "POST /v1/key/create/..."]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/./b", "/a", "a/", "a//b"])
def test_names_that_would_be_another_path_are_not_sent(name: str) -> None:
    client = Client("127.0.0.1:1")
    for call, what in (
        (client.create_key, "key name"),
        (client.describe_policy, "policy name"),
        (client.describe_identity, "identity"),
    ):
        with pytest.raises(ValueError, match=f"{what} '{re.escape(name)}' is empty, too long or contains invalid"):
            call(name)
    with pytest.raises(ValueError, match=r"prefix '\.\./\*' is empty"):
        list(client.list_keys("../"))


def test_lists_are_read_to_the_end(tmp_path: Path) -> None:
    pages = {
        "/v1/key/list/n%2A": {"names": ["n1", "n2"], "continue_at": "n3~1"},
        "/v1/key/list/n3~1": {"names": ["n3"], "continue_at": ""},
        "/v1/key/list/%2A": {"names": []},
    }
    with fake_server(tmp_path, answers(pages)) as server, Client(server.endpoint, ca_file=server.ca_file) as client:
        assert list(client.list_keys("n")) == list(client.list_keys("n*")) == ["n1", "n2", "n3"]
        assert list(client.list_keys()) == []


@pytest.mark.parametrize("token", ["n2", "n2~1"])
def test_a_list_that_cannot_be_continued_is_not_taken_for_whole(tmp_path: Path, token: str) -> None:
    body = json.dumps({"names": ["n1"], "continue_at": token}).encode()
    with (
        fake_server(tmp_path, lambda *_: Answer(body=body)) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
        pytest.raises(APIError, match="more names than this server can list"),
    ):
        list(client.list_keys())


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-ndjson", b'{"Name":"a"}\n{"Name":"b"}\n'),
        ("application/x-ndjson", b'{"name":"a","created_at":""}\n{"name":"b"}\n'),
        ("text/plain", b'["a","b"]\n'),
        ("application/json", b'{"names":["a","b"],"continue_at":""}\n'),
    ],
)
def test_every_generation_s_lists_are_understood(tmp_path: Path, content_type: str, body: bytes) -> None:
    with (
        fake_server(tmp_path, lambda *_: Answer(body=body, content_type=content_type)) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
    ):
        assert list(client.list_policies()) == ["a", "b"]


def test_identities_policies_and_the_server_itself(tmp_path: Path) -> None:
    me, other = "1" * 64, "2" * 64
    rules = {"allow": {"/v1/key/create/*": {}}, "created_at": "2026-01-01T00:00:00Z", "created_by": me}
    replies: dict[str, object] = {
        "/version": {"version": "1", "commit": "c"},
        "/v1/status": {"version": "1", "os": "linux", "arch": "amd64", "uptime": 7, "keystore_unreachable": True},
        "/v1/ready": {},
        "/v1/policy/read/p": {**rules, "name": "p"},
        "/v1/identity/list/%2A": {"identities": [me, other]},
        f"/v1/identity/describe/{other}": {"policy": "p", "created_at": "2026-01-01T00:00:00Z", "created_by": me},
        "/v1/identity/self/describe": {"identity": other, "created_at": "", "policy": {**rules, "name": "p"}},
    }
    with fake_server(tmp_path, answers(replies)) as server, Client(server.endpoint, ca_file=server.ca_file) as client:
        assert client.version() == client_module.Version("1", "c")
        status = client.status()
        assert (status.uptime, status.keystore_unreachable, status.num_cpu) == (7, True, 0)
        client.ready()
        assert client.read_policy("p").allow == ("/v1/key/create/*",)
        assert list(client.list_identities()) == [me, other]
        assert client.describe_identity(other).policy == "p"
        info, policy = client.describe_self()
        assert (info.identity, info.is_admin, info.policy) == (other, False, "p")
        assert policy is not None
        assert policy.created_by == me


# --- refusals ---


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (Answer(404, b'{"message":"key does not exist"\n}'), 404, "key does not exist"),
        (Answer(400, b'{"message":"a","error":"b"}'), 400, "b"),
        (Answer(404, b"404 page not found\n", "text/plain"), 404, "404 page not found"),
        (Answer(502, b"<html>", "text/html"), 502, "HTTP status 502 Bad Gateway"),
        (Answer(307), 307, "HTTP status 307 Temporary Redirect"),
        (Answer(200, b"<html>", "text/html"), 200, "the reply is not what a KES server sends; is the endpoint right?"),
        (Answer(200, b"[]"), 200, "the reply is not what a KES server sends; is the endpoint right?"),
    ],
)
def test_a_refusal_carries_status_and_message(tmp_path: Path, answer: Answer, status: int, message: str) -> None:
    with fake_server(tmp_path, lambda *_: answer) as server, Client(server.endpoint, ca_file=server.ca_file) as client:
        with pytest.raises(APIError) as caught:
            client.describe_key("k")
        assert (caught.value.status, caught.value.message) == (status, message)


@pytest.mark.parametrize("body", [b'{"names":[1]}', b'{"names":["a"]', b"", b"null", b"7"])
def test_a_list_that_is_none_is_an_api_error(tmp_path: Path, body: bytes) -> None:
    with (
        fake_server(tmp_path, lambda *_: Answer(body=body)) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
        pytest.raises(APIError),
    ):
        list(client.list_keys())


def test_an_error_in_the_middle_of_a_list_is_not_lost(tmp_path: Path) -> None:
    body = b'{"name":"a"}\n{"error":"store is away"}\n'
    with (
        fake_server(tmp_path, lambda *_: Answer(body=body, content_type="application/x-ndjson")) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
        pytest.raises(APIError, match="store is away"),
    ):
        list(client.list_keys())


# --- connections ---


def test_a_server_that_is_not_there() -> None:
    endpoint = f"https://127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionFailed, match=f"cannot connect to {endpoint}: connection refused"):
        Client(endpoint).version()


def test_an_unknown_certificate_is_refused_with_advice(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path) as server,
        Client(server.endpoint) as client,
        pytest.raises(ServerNotTrusted, match="KES_CA_FILE"),
    ):
        client.ready()
    assert server.calls == []


def test_an_expired_certificate_is_called_so(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path, days=(-3, -1)) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
        pytest.raises(ServerNotTrusted, match="has expired"),
    ):
        client.ready()


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


def test_the_second_endpoint_serves_when_the_first_does_not(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        endpoints = f"127.0.0.1:{free_port()}, {server.endpoint},"
        with Client(endpoints, ca_file=server.ca_file) as client:
            client.create_key("k")
            client.ready()
        assert server.calls == ["POST /v1/key/create/k", "GET /v1/ready"]


def test_the_endpoint_that_answers_is_asked_first_from_then_on(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    silent = Answer(silent=True)
    with fake_server(tmp_path, lambda *_: silent) as first, fake_server(tmp_path / "b") as second:
        authorities = tmp_path / "both.crt"
        authorities.write_bytes(first.ca_file.read_bytes() + second.ca_file.read_bytes())
        with Client([first.endpoint, second.endpoint], ca_file=authorities) as client:
            for _ in range(3):
                client.ready()
        assert (len(first.calls), len(second.calls)) == (1, 3)


def test_when_no_endpoint_answers_each_is_named() -> None:
    ports = free_port(), free_port()
    with pytest.raises(ConnectionFailed, match=rf"no server answers: .*:{ports[0]}: .*; .*:{ports[1]}: "):
        Client([f"127.0.0.1:{port}" for port in ports]).version()


def test_what_must_not_be_done_twice_is_not_sent_twice(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path, lambda *_: Answer(silent=True)) as server,
        Client([server.endpoint, f"127.0.0.1:{free_port()}"], ca_file=server.ca_file, retries=1) as client,
    ):
        with pytest.raises(ConnectionFailed, match=r"without an answer\Z"):
            client.create_key("k")
        assert server.calls == ["POST /v1/key/create/k"]
        with pytest.raises(ConnectionFailed, match="no server answers"):
            client.ready()
        assert server.calls[1:] == ["GET /v1/ready"] * 2


def test_a_connection_that_ended_while_idle_is_replaced(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path, lambda *_: Answer(close=True)) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
    ):
        for _ in range(3):
            client.ready()
        assert len(server.peers) == 3


def test_a_reply_that_breaks_off_is_not_taken_for_whole(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path, lambda *_: Answer(body=b"{}", missing=1)) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
        pytest.raises(ConnectionFailed, match="closed the connection"),
    ):
        client.status()


def test_a_server_that_keeps_silent_ends_in_time(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        with Client(endpoint, timeout=0.1) as client, pytest.raises(ConnectionFailed, match="in time"):
            client.ready()


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


# --- a real server ---


def test_a_real_server_understands_it_all(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        with Client(server.endpoint, ca_file=server.ca_file) as nobody, pytest.raises(ClientRefused, match="demands"):
            nobody.version()
        with server.client() as client:
            client.ready()
            assert not client.status().keystore_unreachable
            client.create_key("k")
            client.import_key("imported", bytes(32), "ChaCha20")
            assert list(client.list_keys()) == ["imported", "k"]
            assert client.describe_key("imported").algorithm == "ChaCha20"
            data_key = client.generate_key("k", b"context")
            assert client.decrypt("k", data_key.ciphertext, b"context") == data_key.plaintext
            assert client.decrypt("imported", client.encrypt("imported", b"")) == b""
            assert len(client.hmac("k", b"message")) == 32
            me, policy = client.describe_self()
            assert (me.is_admin, policy) == (True, None)
            assert list(client.list_identities()) == [me.identity]
            assert list(client.list_policies()) == []
            client.delete_key("k")
            with pytest.raises(APIError, match="key does not exist") as caught:
                client.describe_key("k")
            assert caught.value.status == 404


# --- endpoints and credentials ---


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://127.0.0.1:7373", "https://127.0.0.1:7373"),
        (" kes.example.com:7373 ", "https://kes.example.com:7373"),
        ("http://kes:1", "https://kes:1"),
        ("https://kes.example.com/", "https://kes.example.com:443"),
        ("HTTPS://kes.example.com:443", "https://kes.example.com:443"),
        ("localhost", "https://localhost:443"),
        ("[::1]", "https://[::1]:443"),
        ("[::1]:7373", "https://[::1]:7373"),
    ],
)
def test_an_endpoint(text: str, url: str) -> None:
    assert str(Endpoint.parse(text)) == url


@pytest.mark.parametrize(
    "text", ["", "https://", "ftp://a", "a:b", "a:70000", "a/b", "[::1", "user@host:1", "a..b", "\udcff"]
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="is not an endpoint"):
        Endpoint.parse(text)


def test_certificate_files_with_an_encrypted_key(tmp_path: Path) -> None:
    pair = certificate_for(API_KEY)
    cert, key = tmp_path / "client.crt", tmp_path / "client.key"
    cert.write_text(pair.certificate_pem)
    key.write_text(pair.key_pem("open sesame"))
    asked = []

    def password() -> str:
        asked.append(1)
        return "open sesame"

    with fake_server(tmp_path, client_ca=cert) as server:
        with Client(server.endpoint, cert=cert, key=key, password=password, ca_file=server.ca_file) as client:
            client.ready()
        assert asked == [1]
        with pytest.raises(ValueError, match="incorrect password"):
            Client(server.endpoint, cert=cert, key=key, password="wrong")
        with pytest.raises(ValueError, match="is encrypted"):
            Client(server.endpoint, cert=cert, key=key)
        key.write_text(pair.key_pem())
        with Client(server.endpoint, cert=cert, key=key, password=password, ca_file=server.ca_file) as client:
            client.ready()
        assert asked == [1]


def test_credentials_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    cert, key = make(name="a").write(tmp_path, "a")
    _, other = make(name="b").write(tmp_path, "b")
    _, p256 = make("p256", name="c").write(tmp_path, "c")
    for arguments, complaint in (
        ({"api_key": API_KEY, "cert": cert, "key": key}, "API key and a certificate"),
        ({"cert": cert}, "needed together"),
        ({"cert": key, "key": key}, "holds certificates only"),
        ({"cert": cert, "key": cert}, "no PEM private key"),
        ({"cert": cert, "key": other}, "does not belong"),
        ({"cert": cert, "key": p256}, "does not belong"),
        ({"api_key": "kes:v1:AAAA"}, "invalid length"),
        ({"ca_file": key}, "no PEM certificate to trust"),
        ({"endpoints": []}, "no endpoint"),
        ({"endpoints": ", ,"}, "no endpoint"),
    ):
        with pytest.raises(ValueError, match=complaint):
            Client(**arguments)
    with pytest.raises(FileNotFoundError, match=r"gone\.crt"):
        Client(cert=tmp_path / "gone.crt", key=key)
    with pytest.raises(FileNotFoundError, match=r"gone\.crt"):
        Client(ca_file=tmp_path / "gone.crt")
