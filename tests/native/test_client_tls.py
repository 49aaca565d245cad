"""What a native client trusts and shows, and what it says of servers that do not fit."""

import ssl
import struct
from collections.abc import Sequence
from socket import SO_LINGER, SOL_SOCKET, socket
from typing import Any

import pytest

from keswick._native import CallFailed, ClientTls, HttpClient, peer_certificates
from support.certificates import KINDS, Pair, make, make_v1
from support.sockets import Script, answer_with, listening, tls, until_closed
from support.transport import CLIENT, PLAIN, SERVER, Endpoint, server_tls

NAMES = ("localhost", "127.0.0.1")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
AUTHORITY = make("p256", name="authority", ca=True)
INTERMEDIATE = make("p256", name="intermediate", ca=True, issuer=AUTHORITY)
KINDS_AND_VERSIONS = [
    (kind, version)
    for kind in KINDS
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    # In TLS 1.2 OpenSSL takes a certificate on P-521 only together with a key exchange on P-521, which rustls has not.
    if (kind, version) != ("p521", ssl.TLSVersion.TLSv1_2)
]


def client(
    *roots: Pair, pair: Pair | None = None, chain: Sequence[Pair] = (), verify: bool = True, **options: Any
) -> HttpClient:
    certificates = [link.cert_der for link in (pair, *chain) if link]
    trusted = [root.cert_der for root in roots] if verify else None
    return HttpClient(ClientTls(roots=trusted, certificates=certificates, key=pair.key_der if pair else b""), **options)


def call(caller: HttpClient, port: int, host: str = "localhost", path: str = "/") -> str:
    """The body of the answer, or the kind of failure."""
    try:
        return caller.call(host, port, "GET", path, timeout=20)[2].decode()
    except CallFailed as failure:
        kind, _, sent = failure.args
        assert not sent
        return str(kind)


def outcome(
    server: Pair, *roots: Pair, host: str = "localhost", chain: Sequence[Pair] = (), verify: bool = True
) -> str:
    with listening(tls(server, answer_with(OK), chain=chain)) as port:
        return call(client(*roots, verify=verify), port, host)


# --- trust ---


@pytest.mark.parametrize(("kind", "version"), KINDS_AND_VERSIONS)
@pytest.mark.parametrize("verify", [True, False])
def test_servers_with_keys_of_every_kind(kind: str, version: ssl.TLSVersion, verify: bool) -> None:
    server = make(kind, issuer=AUTHORITY, sans=NAMES, eku=["server"])
    with listening(tls(server, answer_with(OK), version=version)) as port:
        assert call(client(AUTHORITY, verify=verify), port) == "ok"


@pytest.mark.parametrize(
    ("expected", "server"),
    [
        ("ok", make(issuer=AUTHORITY, sans=NAMES)),
        ("ok", make(issuer=AUTHORITY, sans=NAMES, eku=["any"])),
        ("ok", make(issuer=AUTHORITY, sans=NAMES, eku=["client", "server"])),
        ("untrusted", make(issuer=AUTHORITY, sans=NAMES, eku=["client"])),
        ("untrusted", make(sans=NAMES)),
        ("untrusted", make("p256", sans=NAMES, ca=True)),
        ("untrusted", make("p256", issuer=AUTHORITY, sans=NAMES, ca=True)),
        ("expired", make(issuer=AUTHORITY, sans=NAMES, days=(-3, -1))),
        ("not_yet_valid", make(issuer=AUTHORITY, sans=NAMES, days=(1, 3))),
        ("name", make(issuer=AUTHORITY, sans=["elsewhere.example"])),
        ("name", make(issuer=AUTHORITY, name="localhost")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_server_of_a_trusted_authority(expected: str, server: Pair) -> None:
    assert outcome(server, AUTHORITY) == expected


def test_a_server_with_an_intermediate_authority() -> None:
    server = make(issuer=INTERMEDIATE, sans=NAMES)
    assert outcome(server, AUTHORITY, chain=[INTERMEDIATE]) == "ok"
    assert outcome(server, AUTHORITY) == "untrusted"
    assert outcome(server, INTERMEDIATE) == "ok"


@pytest.mark.parametrize(
    ("expected", "server"),
    [
        ("ok", make(sans=NAMES)),
        ("ok", make("p256", sans=NAMES, ca=True)),
        ("ok", make("p256", sans=NAMES, eku=["client"])),
        ("ok", make_v1(name="localhost")),
        ("ok", make("p256", name="LocalHost")),
        ("name", make_v1(name="elsewhere")),
        ("name", make("p256", name="localhost", sans=["elsewhere.example"])),
        ("expired", make(sans=NAMES, days=(-3, -1))),
        ("not_yet_valid", make(sans=NAMES, days=(1, 3))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_server_whose_own_certificate_is_a_root(expected: str, server: Pair) -> None:
    assert outcome(server, AUTHORITY, server) == expected


def test_the_key_of_a_root_does_not_make_another_certificate_a_root() -> None:
    server = make("p256", sans=NAMES)
    assert outcome(make(sans=NAMES, key=server.key), server) == "untrusted"


@pytest.mark.parametrize("server", [make(), make(days=(-3, -1)), make_v1(name="elsewhere")], ids=["name", "old", "v1"])
def test_without_verification_any_server_passes(server: Pair) -> None:
    assert outcome(server, verify=False) == "ok"


@pytest.mark.parametrize(
    ("host", "sans"), [("127.0.0.1", ["127.0.0.1"]), ("::1", ["::1"]), ("LOCALHOST", ["localhost"])]
)
def test_names_and_addresses(host: str, sans: list[str]) -> None:
    server = make(issuer=AUTHORITY, sans=sans)
    with listening(tls(server, answer_with(OK)), host="::1" if host == "::1" else "127.0.0.1") as port:
        assert call(client(AUTHORITY), port, host) == "ok"


def test_a_server_of_another_name_says_its_names() -> None:
    server = make(issuer=AUTHORITY, sans=["a.example", "10.0.0.1"])
    with listening(tls(server, answer_with(OK))) as port, pytest.raises(CallFailed) as caught:
        client(AUTHORITY).call("localhost", port, "GET", "/", timeout=20)
    assert caught.value.args == ("name", "a.example, 10.0.0.1", False)


def test_roots_that_cannot_be_used_are_passed_over() -> None:
    assert outcome(make(issuer=AUTHORITY, sans=NAMES), Broken(), AUTHORITY) == "ok"
    for roots in ([], [b"no certificate"]):
        with pytest.raises(ValueError, match="no root certificate"):
            ClientTls(roots=roots)


class Broken(Pair):
    def __init__(self) -> None:
        pass

    @property
    def cert_der(self) -> bytes:
        return b"no certificate"


# --- what the client shows ---


@pytest.mark.parametrize(("kind", "version"), KINDS_AND_VERSIONS)
def test_clients_with_keys_of_every_kind(kind: str, version: ssl.TLSVersion) -> None:
    pair = make(kind, issuer=AUTHORITY)
    with listening(tls(SERVER, answer_with(OK), client_ca=AUTHORITY, version=version)) as port:
        assert call(client(SERVER, pair=pair), port) == "ok"


def test_the_server_gets_the_whole_chain() -> None:
    pair = make(issuer=INTERMEDIATE)
    with Endpoint(lambda request: (200, PLAIN, b"%d" % len(request.connection.certificates))) as endpoint:
        assert call(client(SERVER, pair=pair, chain=[INTERMEDIATE]), endpoint.server.address[1]) == "2"


@pytest.mark.parametrize(
    ("certificates", "key", "complaint"),
    [
        ([CLIENT.cert_der], SERVER.key_der, "does not belong to the client certificate"),
        ([CLIENT.cert_der], b"secret", "not an unencrypted PKCS#8"),
        ([CLIENT.cert_der], b"", "not an unencrypted PKCS#8"),
        ([], CLIENT.key_der, "no client certificate"),
        ([b"no certificate"], CLIENT.key_der, "the client certificate is not an X.509 certificate"),
        ([CLIENT.cert_der, b"x"], CLIENT.key_der, "number 2 of the client's chain"),
    ],
)
def test_credentials_that_cannot_be_used(certificates: list[bytes], key: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        ClientTls(roots=None, certificates=certificates, key=key)
    assert "secret" not in str(caught.value)


# --- refusals ---


@pytest.mark.parametrize("http2", [True, False])
@pytest.mark.parametrize(
    ("options", "pair", "alert"),
    [
        ({}, None, "certificate required"),
        ({"verify": True, "roots": [AUTHORITY.cert_der]}, CLIENT, "unknown ca"),
        ({"verify": True, "roots": [AUTHORITY.cert_der]}, make(issuer=AUTHORITY, days=(-3, -1)), "certificate expired"),
    ],
)
def test_a_refusal_of_the_client_is_an_alert(
    http2: bool, options: dict[str, Any], pair: Pair | None, alert: str
) -> None:
    with Endpoint(tls=server_tls(**options)) as endpoint:
        port = endpoint.server.address[1]
        for _ in range(20):  # the alert races with the request
            with pytest.raises(CallFailed) as caught:
                client(SERVER, pair=pair, http2=http2).call("localhost", port, "POST", "/", b"x" * 1000, timeout=20)
            assert caught.value.args == ("alert", alert, False)


@pytest.mark.parametrize(
    ("version", "alert"),
    [(ssl.TLSVersion.TLSv1_2, "handshake failure"), (ssl.TLSVersion.TLSv1_3, "certificate required")],
)
def test_a_refusal_by_openssl_is_an_alert(version: ssl.TLSVersion, alert: str) -> None:
    with listening(tls(SERVER, answer_with(OK), client_ca=AUTHORITY, version=version)) as port:
        for _ in range(20):
            with pytest.raises(CallFailed) as caught:
                client(SERVER).call("localhost", port, "POST", "/", b"x" * 3_000_000, timeout=20)
            assert caught.value.args == ("alert", alert, False)


def reset(connection: socket) -> None:
    connection.recv(10)
    connection.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))


def greet(greeting: bytes) -> Script:
    def script(connection: socket) -> None:
        connection.sendall(greeting)
        until_closed(connection)

    return script


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (greet(b"SSH-2.0-OpenSSH_9.6\r\n"), "no_tls"),
        (greet(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), "no_tls"),
        (greet(b"220 mail.example ESMTP\r\n"), "no_tls"),
        (greet(b"\x15\x03\x01\x00\x02\x02\x46"), "alert"),  # protocol version
        (lambda connection: connection.recv(10), "tls"),
        (reset, "tls"),
    ],
)
def test_what_is_no_tls_server(script: Script, kind: str) -> None:
    with listening(script) as port:
        assert call(client(SERVER), port) == kind


def test_a_plain_http_server_speaks_no_tls() -> None:
    with Endpoint(plain=True) as endpoint:
        assert call(client(SERVER), endpoint.server.address[1], "127.0.0.1") == "no_tls"


def test_a_silent_server_is_given_up() -> None:
    with listening(until_closed) as port, pytest.raises(CallFailed) as caught:
        client(SERVER, connect_timeout=0.2).call("localhost", port, "GET", "/", timeout=None)
    assert caught.value.args == ("connect_timeout", "the TLS handshake", False)


def test_sessions_are_resumed() -> None:
    resumed: list[bool] = []

    def script(connection: socket) -> None:
        assert isinstance(connection, ssl.SSLSocket)
        resumed.append(bool(connection.session_reused))
        answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")(connection)

    caller = client(SERVER)
    with listening(tls(SERVER, script)) as port:
        for _ in range(3):
            caller.call("localhost", port, "GET", "/", timeout=20)
    assert resumed == [False, True, True]


# --- what a server shows ---


def test_the_certificates_of_a_server() -> None:
    server = make(issuer=INTERMEDIATE, sans=["elsewhere.example"], days=(-3, -1))
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with listening(tls(server, until_closed, version=version, chain=[INTERMEDIATE])) as port:
            shown = peer_certificates("localhost", port, server_name="elsewhere.example", timeout=20)
        assert shown == [server.cert_der, INTERMEDIATE.cert_der]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_refuses_the_client_has_shown_itself(version: ssl.TLSVersion) -> None:
    with listening(tls(SERVER, until_closed, client_ca=AUTHORITY, version=version)) as port:
        assert peer_certificates("127.0.0.1", port, timeout=20) == [SERVER.cert_der]


def test_a_server_that_shows_nothing() -> None:
    for script, kind in ((greet(b"SSH-2.0-x\r\n"), "no_tls"), (until_closed, "connect_timeout")):
        with listening(script) as port, pytest.raises(CallFailed) as caught:
            peer_certificates("127.0.0.1", port, timeout=0.3)
        assert caught.value.args[0] == kind
