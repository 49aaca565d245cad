import socket
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keswick._native import Reply, Request, Tls
from support.certificates import KINDS, Pair, make, make_v1
from support.transport import CLIENT, PLAIN, SERVER, Endpoint, hello, is_closed, read_response, server_tls, wait_until

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]

CA = make("p256", name="authority", ca=True)
MIDDLE = make("p256", name="middle", issuer=CA, ca=True)


def ask(endpoint: Endpoint, context: ssl.SSLContext) -> bytes:
    """A GET over HTTP/1.1; the body of the answer. Raises what the handshake raises."""
    raw = socket.create_connection(endpoint.server.address, timeout=20)
    with context.wrap_socket(raw, server_hostname="localhost") as connected:
        connected.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return read_response(connected)[2]


def leaf(request: Request) -> Reply:
    certificates = request.connection.certificates
    return 200, PLAIN, certificates[0] if certificates else b"none"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_client_key(kind: str, version: ssl.TLSVersion) -> None:
    pair = make(kind)
    with Endpoint(leaf) as endpoint:
        context = endpoint.context(pair)
        context.minimum_version = context.maximum_version = version
        assert ask(endpoint, context) == pair.cert_der


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "pair",
    [make(days=(-9, -1)), make(days=(1, 9)), make(ca=True), make(eku=["server"]), make_v1(), make(issuer=CA)],
    ids=["expired", "not yet valid", "authority", "serverAuth", "version 1", "unknown issuer"],
)
def test_any_certificate_passes_when_it_is_not_verified(pair: Pair, version: ssl.TLSVersion) -> None:
    with Endpoint(leaf) as endpoint:
        context = endpoint.context(pair)
        context.minimum_version = context.maximum_version = version
        assert ask(endpoint, context) == pair.cert_der


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_server_key(kind: str) -> None:
    server = make(kind, name=f"server with {kind}", sans=["localhost"])
    with Endpoint(tls=server_tls(server)) as endpoint:
        context = endpoint.context()
        context.load_verify_locations(cadata=server.cert_pem.decode())
        assert ask(endpoint, context) == b"hello"


@pytest.mark.parametrize("version", VERSIONS)
def test_without_a_certificate_the_handshake_fails(version: ssl.TLSVersion) -> None:
    with Endpoint() as endpoint:
        context = endpoint.context(None)
        context.minimum_version = context.maximum_version = version
        with pytest.raises(ssl.SSLError, match="alert"):
            ask(endpoint, context)
        wait_until(lambda: endpoint.server.stats()["handshakes_failed_total"])
        assert endpoint.server.take_handshake_errors() == [("127.0.0.1", "no client certificate")]
        assert endpoint.server.take_handshake_errors() == []


def private_key_with_foreign_public_key(private: Pair, public: Pair) -> bytes:
    """A SEC 1 key (RFC 5915) for P-256 that OpenSSL takes for the key of `public` but that signs as `private`."""
    assert isinstance(private.key, ec.EllipticCurvePrivateKey)
    scalar = private.key.private_numbers().private_value.to_bytes(32, "big")
    point = public.certificate.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    curve = bytes.fromhex("a00a06082a8648ce3d030107")
    fields = b"\x02\x01\x01" + b"\x04\x20" + scalar + curve + b"\xa1\x44\x03\x42\x00" + point
    return (
        ssl.DER_cert_to_PEM_cert(b"\x30" + bytes([len(fields)]) + fields)
        .replace("CERTIFICATE", "EC PRIVATE KEY")
        .encode()
    )


@pytest.mark.parametrize("client_auth", ["require", "request"])
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_certificate_without_its_private_key_is_refused(
    version: ssl.TLSVersion, verify: bool, client_auth: str, tmp_path: Path
) -> None:
    victim, thief = make("p256"), make("p256")
    cert, key = victim.write(tmp_path)
    tls = server_tls(client_auth=client_auth, verify=verify, roots=[victim.cert_der])
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        return hello(request)

    with Endpoint(handler, tls=tls) as endpoint:
        context = endpoint.context(victim)
        context.minimum_version = context.maximum_version = version
        assert ask(endpoint, context) == b"hello"
        key.write_bytes(private_key_with_foreign_public_key(thief, victim))
        context = endpoint.context(None)
        context.load_cert_chain(cert, key)
        context.minimum_version = context.maximum_version = version
        with pytest.raises(ssl.SSLError, match="alert"):
            ask(endpoint, context)
        wait_until(lambda: endpoint.server.stats()["handshakes_failed_total"])
        reason = "bad client certificate: a signature is not valid"
        assert endpoint.server.take_handshake_errors() == [("127.0.0.1", reason)]
    assert len(asked) == 1


@pytest.mark.parametrize("client_auth", ["request", "none"])
def test_a_certificate_that_is_not_required(client_auth: str) -> None:
    with Endpoint(leaf, tls=server_tls(client_auth=client_auth)) as endpoint:
        assert ask(endpoint, endpoint.context(None)) == b"none"
        assert ask(endpoint, endpoint.context()) == (CLIENT.cert_der if client_auth == "request" else b"none")


def test_the_whole_chain_reaches_the_handler() -> None:
    pair = make(issuer=MIDDLE)

    def chain(request: Request) -> Reply:
        return 200, PLAIN, b"".join(request.connection.certificates)

    with Endpoint(chain) as endpoint:
        assert ask(endpoint, endpoint.context(pair, chain=(MIDDLE,))) == pair.cert_der + MIDDLE.cert_der


@pytest.mark.parametrize("version", VERSIONS)
def test_verification(version: ssl.TLSVersion) -> None:
    trusted = make(name="self-signed")
    tls = server_tls(verify=True, roots=[CA.cert_der, trusted.cert_der])
    with Endpoint(tls=tls) as endpoint:

        def attempt(pair: Pair, *chain: Pair) -> bytes:
            context = endpoint.context(pair, chain=chain)
            context.minimum_version = context.maximum_version = version
            return ask(endpoint, context)

        for eku in ([], ["client"], ["any"]):
            assert attempt(make(issuer=CA, eku=eku)) == b"hello"
        assert attempt(make(issuer=MIDDLE), MIDDLE) == b"hello"
        assert attempt(trusted) == b"hello"

        refused = {
            "it is not issued by a trusted authority": make(),
            "it has expired": make(issuer=CA, days=(-9, -1)),
            "its extended key usage does not allow client authentication": make(issuer=CA, eku=["server"]),
        }
        for reason, pair in refused.items():
            with pytest.raises(ssl.SSLError, match="alert"):
                attempt(pair)
            wait_until(lambda: endpoint.server.stats()["handshakes"] == 0)
            assert endpoint.server.take_handshake_errors() == [("127.0.0.1", f"bad client certificate: {reason}")]


@pytest.mark.parametrize("version", VERSIONS)
def test_resumption_keeps_the_certificates(version: ssl.TLSVersion) -> None:
    with Endpoint(leaf) as endpoint:
        context = endpoint.context()
        context.minimum_version = context.maximum_version = version
        session = None
        for resumed in (False, True):
            raw = socket.create_connection(endpoint.server.address, timeout=20)
            with context.wrap_socket(raw, server_hostname="localhost", session=session) as connected:
                connected.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert read_response(connected)[2] == CLIENT.cert_der
                assert connected.session_reused is resumed
                session = connected.session


def test_a_handshake_brings_one_ticket() -> None:
    tickets = []

    def note(
        _connection: object, direction: str, _version: object, _content: object, kind: object, _data: bytes
    ) -> None:
        if direction == "read" and getattr(kind, "name", "") == "NEWSESSION_TICKET":
            tickets.append(kind)

    with Endpoint() as endpoint:
        context = endpoint.context()
        context._msg_callback = note  # type: ignore[attr-defined]
        raw = socket.create_connection(endpoint.server.address, timeout=20)
        with context.wrap_socket(raw, server_hostname="localhost") as connected:
            connected.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            read_response(connected)
    assert len(tickets) == 1


def test_new_settings_resume_no_session_of_the_old_ones() -> None:
    with Endpoint() as endpoint:
        context = endpoint.context()
        with context.wrap_socket(socket.create_connection(endpoint.server.address), server_hostname="localhost") as old:
            old.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            read_response(old)
            session = old.session
        endpoint.server.set_tls(server_tls())
        raw = socket.create_connection(endpoint.server.address)
        with context.wrap_socket(raw, server_hostname="localhost", session=session) as new:
            assert not new.session_reused


@pytest.mark.parametrize(
    ("offered", "spoken"), [(["h2", "http/1.1"], "h2"), (["http/1.1"], "http/1.1"), (["h2"], "h2"), ([], None)]
)
def test_protocol_negotiation(offered: list[str], spoken: str | None) -> None:
    with Endpoint() as endpoint:
        context = endpoint.context()
        if offered:
            context.set_alpn_protocols(offered)
        raw = socket.create_connection(endpoint.server.address)
        with context.wrap_socket(raw, server_hostname="localhost") as connected:
            assert connected.selected_alpn_protocol() == spoken


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"EHLO localhost\r\n", "the first bytes are not a TLS handshake"),
        (b"", "the client closed the connection"),
    ],
)
def test_failed_handshakes_in_words(sent: bytes, reason: str) -> None:
    with Endpoint() as endpoint:
        with socket.create_connection(endpoint.server.address, timeout=20) as raw:
            raw.sendall(sent)
            if sent:
                raw.recv(100)
        wait_until(lambda: endpoint.server.stats()["handshakes_failed_total"])
        assert endpoint.server.take_handshake_errors() == [("127.0.0.1", reason)]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_http_without_tls_is_told_so(method: str) -> None:
    with Endpoint() as endpoint:
        with endpoint.half_open() as raw:
            raw.sendall(f"{method} / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n".encode())
            raw.sendall(b"x" * 100_000)
            received = b"".join(iter(lambda: raw.recv(1000), b""))
        assert received == b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
        wait_until(lambda: endpoint.server.stats()["handshakes"] == 0)
        assert endpoint.server.take_handshake_errors() == [("127.0.0.1", "an HTTP request without TLS")]


def test_the_alert_of_a_client_in_words() -> None:
    with Endpoint() as endpoint:
        context = ssl.create_default_context()
        raw = socket.create_connection(endpoint.server.address)
        with raw, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(raw, server_hostname="localhost")
        wait_until(lambda: endpoint.server.stats()["handshakes_failed_total"])
        assert endpoint.server.take_handshake_errors() == [("127.0.0.1", "remote alert: unknown ca")]


def test_the_newest_64_errors_are_kept() -> None:
    with Endpoint() as endpoint:
        for _ in range(70):
            socket.create_connection(endpoint.server.address).close()
        wait_until(lambda: endpoint.server.stats()["handshakes_failed_total"] == 70)
        assert len(endpoint.server.take_handshake_errors()) == 64


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"certificates": []}, "there is no server certificate"),
        ({"certificates": [b"garbage"]}, "the server certificate is not an X.509 certificate"),
        ({"certificates": [SERVER.cert_der, b"garbage"]}, "certificate number 2 of the server's chain is not"),
        ({"key": b"garbage"}, "the private key is not an unencrypted"),
        ({"key": make("p256").key_der}, "the private key does not belong to the server certificate"),
        ({"key": CLIENT.key_der}, "the private key does not belong to the server certificate"),
        ({"client_auth": "maybe"}, 'client_auth is "none", "request" or "require", not "maybe"'),
        ({"verify": True, "roots": [b"garbage"]}, "root certificate number 1 cannot be used"),
    ],
)
def test_unusable_settings_in_words(options: dict[str, object], reason: str) -> None:
    arguments = {"certificates": [SERVER.cert_der], "key": SERVER.key_der} | options
    with pytest.raises(ValueError, match=reason):
        Tls(**arguments)  # type: ignore[arg-type]


def test_a_short_rsa_key_is_refused() -> None:
    small = make(key=rsa.generate_private_key(65537, 1024))
    with pytest.raises(ValueError, match="RSA of 2048 to 8192 bits"):
        server_tls(small)
    with Endpoint() as endpoint:
        context = endpoint.context(None)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.load_cert_chain(*small.write(endpoint.trusted.parent, "small"))
        with pytest.raises((ssl.SSLError, ConnectionError)):
            ask(endpoint, context)


def test_new_settings_leave_open_connections_alone() -> None:
    replacement = make("p384", sans=["localhost"])
    with Endpoint(hello) as endpoint, endpoint.connect() as old:
        endpoint.server.set_tls(server_tls(replacement))
        with pytest.raises(ssl.SSLCertVerificationError):
            endpoint.connect()
        old.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_response(old)[0] == 200


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_new_settings_can_end_open_connections(alpn: str) -> None:
    with Endpoint() as endpoint, endpoint.connect(alpn=alpn) as old:
        wait_until(lambda: endpoint.server.stats()["connections"] == 1)
        endpoint.server.set_tls(server_tls(), drain=True)
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)
        if alpn == "http/1.1":
            assert is_closed(old)


def test_a_plain_server_takes_no_tls_settings() -> None:
    with Endpoint(plain=True) as endpoint, pytest.raises(ValueError, match="plain"):
        endpoint.server.set_tls(server_tls())
