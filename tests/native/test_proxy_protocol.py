"""The PROXY protocol, version 2, through real sockets.

The format is https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt, section 2.2.
"""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick._native import Reply, Request, Server
from support.transport import PLAIN, Endpoint, hello, is_closed, read_response, wait_until

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
HERE = (["127.0.0.1"], 5.0)
ELSEWHERE = (["192.0.2.0/24"], 5.0)

LOCAL, PROXY = 0x20, 0x21
UNSPECIFIED, TCP4, UDP4, TCP6, UDP6, UNIX, UNIX_DATAGRAM = 0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32
ADDRESS_LENGTH = {TCP4: 12, UDP4: 12, TCP6: 36, UDP6: 36, UNIX: 216, UNIX_DATAGRAM: 216}

PLAIN_AND_TLS = pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])


def header(block: bytes = b"", *, command: int = PROXY, family: int = TCP4) -> bytes:
    return SIGNATURE + struct.pack(">BBH", command, family, len(block)) + block


def of(source: str, *tlvs: bytes) -> bytes:
    """The header of a client with that address."""
    address = ip_address(source)
    block = address.packed + (b"\x7f\x00\x00\x01" if address.version == 4 else b"\0" * 16) + b"\x12\x34\x1c\xcd"
    return header(block + b"".join(tlvs), family=TCP4 if address.version == 4 else TCP6)


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack(">BH", kind, len(value)) + value


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def with_checksum(source: str, *tlvs: bytes, after: bytes = b"") -> bytes:
    blank = of(source, *tlvs, tlv(3, b"\0" * 4), after)
    place = len(blank) - len(after) - 4
    return blank[:place] + struct.pack(">I", crc32c(blank)) + blank[place + 4 :]


def tell_peer(request: Request) -> Reply:
    return 200, PLAIN, request.connection.peer.encode()


def peer_after(endpoint: Endpoint, first: bytes) -> str:
    with endpoint.connect(first=first) as connected:
        connected.sendall(GET)
        return read_response(connected)[2].decode()


def errors_of(endpoint: Endpoint) -> list[tuple[str, str]]:
    """The handshake errors, once there is one."""
    wait_until(lambda: endpoint.server.stats()["handshakes_failed_total"])
    return endpoint.server.take_handshake_errors()


# --- whom it names ---


@PLAIN_AND_TLS
@pytest.mark.parametrize(
    ("source", "peer"),
    [
        ("192.0.2.33", "192.0.2.33"),
        ("0.0.0.0", "0.0.0.0"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:192.0.2.33", "192.0.2.33"),
    ],
)
def test_it_names_the_client(source: str, peer: str, plain: bool) -> None:
    with Endpoint(tell_peer, plain=plain, proxy_protocol=HERE) as endpoint:
        assert peer_after(endpoint, of(source)) == peer


def test_it_names_the_client_over_http2() -> None:
    peers: list[str] = []

    def handler(request: Request) -> Reply:
        peers.append(request.connection.peer)
        return 200, PLAIN, b""

    with Endpoint(handler, proxy_protocol=HERE) as endpoint, endpoint.http2(first=of("192.0.2.1")) as client:
        for _ in range(3):
            client.request()
        wait_until(lambda: len(peers) == 3)
    assert set(peers) == {"192.0.2.1"}


@pytest.mark.parametrize(
    "first",
    [
        header(command=LOCAL, family=UNSPECIFIED),
        header(of("192.0.2.1")[16:], command=LOCAL),
        header(b"anything at all", command=LOCAL, family=0xFF),
        header(family=UNSPECIFIED),
        header(b"anything at all", family=UNSPECIFIED),
        *(header(b"\1" * length, family=family) for family, length in ADDRESS_LENGTH.items() if family & 1 == 0),
        header(b"/client".ljust(108, b"\0") + b"/server".ljust(108, b"\0"), family=UNIX),
    ],
)
def test_otherwise_the_connection_keeps_its_own_address(first: bytes) -> None:
    with Endpoint(tell_peer, plain=True, proxy_protocol=HERE) as endpoint:
        assert peer_after(endpoint, first) == "127.0.0.1"
        assert endpoint.server.take_handshake_errors() == []


@pytest.mark.parametrize(
    "first",
    [
        of("192.0.2.1", tlv(1, b"h2"), tlv(4, b"\0" * 7), tlv(0xEA, b"\x01vpce-08d2bf15fac5001c9"), tlv(0xFF, b"")),
        of("192.0.2.1", tlv(0xE0, b"x" * (4096 - 15))),
        with_checksum("192.0.2.1"),
        with_checksum("192.0.2.1", tlv(1, b"h2"), after=tlv(4, b"abc")),
        with_checksum("::ffff:192.0.2.1"),
    ],
)
def test_notes_are_passed_over(first: bytes) -> None:
    with Endpoint(tell_peer, plain=True, proxy_protocol=HERE) as endpoint:
        assert peer_after(endpoint, first) == "192.0.2.1"


def test_a_known_checksum() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@PLAIN_AND_TLS
def test_a_header_that_comes_in_pieces(plain: bool) -> None:
    with Endpoint(tell_peer, plain=plain, proxy_protocol=HERE) as endpoint:
        raw = endpoint.half_open()
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in with_checksum("192.0.2.1", tlv(1, b"h2")):
            raw.sendall(bytes([byte]))
            time.sleep(0.001)
        connected = raw if plain else endpoint.context().wrap_socket(raw, server_hostname="localhost")
        connected.sendall(GET)
        assert read_response(connected)[2] == b"192.0.2.1"
        connected.close()


def test_a_kept_connection_keeps_its_client() -> None:
    with Endpoint(tell_peer, proxy_protocol=HERE) as endpoint:
        clients = {peer: endpoint.connect(first=of(peer)) for peer in ("192.0.2.1", "192.0.2.2")}
        for peer, connected in [*clients.items()] * 5:
            connected.sendall(GET)
            assert read_response(connected)[2].decode() == peer


def test_own_answers_and_failed_handshakes_name_the_client() -> None:
    with Endpoint(proxy_protocol=HERE) as endpoint:
        raw = endpoint.half_open()
        raw.sendall(of("192.0.2.1") + b"no TLS")
        assert errors_of(endpoint) == [("192.0.2.1", "the first bytes are not a TLS handshake")]
        with endpoint.connect(first=of("192.0.2.2")) as connected:
            connected.sendall(b"GET /x HTTP/1.1\r\n\r\n")
            assert read_response(connected)[0] == 400
        assert endpoint.server.take_own_answers() == [("192.0.2.2", "/x", 400)]


# --- what ends the connection ---


SHORT = "bad PROXY header: it is too short for its addresses"
CUT_OFF = "bad PROXY header: a TLV goes on past its end"
CHECKSUM = "bad PROXY header: its checksum does not fit"
NONE = "no PROXY header of version 2, which is required from this address"


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\n", "a PROXY header of version 1, and only version 2 is taken"),
        (GET, NONE),
        (b"\x16\x03\x01\x02\x00\x01", NONE),
        (SIGNATURE[:-1] + b"!", NONE),
        (header(command=0x11), "bad PROXY header: the version is 1, not 2"),
        (header(command=0x31), "bad PROXY header: the version is 3, not 2"),
        (header(command=0x22), "bad PROXY header: there is no command 2"),
        (header(family=0x13), "bad PROXY header: there is no address family 0x13"),
        (header(family=0x41), "bad PROXY header: there is no address family 0x41"),
        (header(family=0x01), "bad PROXY header: there is no address family 0x01"),
        (header(), SHORT),
        (header(b"x" * 11), SHORT),
        (header(b"x" * 35, family=TCP6), SHORT),
        (of("192.0.2.1", b"\x01"), CUT_OFF),
        (of("192.0.2.1", b"\x01\x00\x03ab"), CUT_OFF),
        (of("192.0.2.1", tlv(3, b"\0" * 4)), CHECKSUM),
        (of("192.0.2.1", tlv(3, b"")), CHECKSUM),
        (of("192.0.2.1", tlv(3, b"\0" * 5)), CHECKSUM),
        (
            of("192.0.2.1", tlv(0xE0, b"x" * (4097 - 15))),
            "the PROXY header announces 4097 bytes, and at most 4096 are taken",
        ),
        (
            SIGNATURE + b"\x21\x11\xff\xff",
            "the PROXY header announces 65535 bytes, and at most 4096 are taken",
        ),
    ],
)
@PLAIN_AND_TLS
def test_a_bad_header_ends_the_connection(first: bytes, reason: str, plain: bool) -> None:
    with Endpoint(plain=plain, proxy_protocol=HERE) as endpoint:
        raw = endpoint.half_open()
        raw.sendall(first)
        assert is_closed(raw)
        assert errors_of(endpoint) == [("127.0.0.1", reason)]
        assert endpoint.server.stats()["connections_total"] == 0


@pytest.mark.parametrize("first", [b"", SIGNATURE[:5], SIGNATURE, of("192.0.2.1")[:-1]])
@PLAIN_AND_TLS
def test_a_header_that_does_not_come(first: bytes, plain: bool) -> None:
    with Endpoint(plain=plain, proxy_protocol=(["127.0.0.1"], 0.1)) as endpoint:
        raw = endpoint.half_open()
        raw.sendall(first)
        assert is_closed(raw)
        assert errors_of(endpoint) == [("127.0.0.1", "timed out before the PROXY header was complete")]
        raw = endpoint.half_open()
        raw.sendall(first)
        raw.shutdown(socket.SHUT_WR)
        assert is_closed(raw)
        wait_until(lambda: endpoint.server.stats()["handshakes_failed_total"] == 2)
        reason = "the connection was closed before the PROXY header was complete"
        assert endpoint.server.take_handshake_errors() == [("127.0.0.1", reason)]


@pytest.mark.parametrize("first", [of("192.0.2.1"), header(command=LOCAL), b"PROXY UNKNOWN\r\n"])
@pytest.mark.parametrize("protocol", [None, ELSEWHERE])
@PLAIN_AND_TLS
def test_a_header_from_another_address(first: bytes, protocol: tuple[list[str], float] | None, plain: bool) -> None:
    with Endpoint(plain=plain, proxy_protocol=protocol) as endpoint:
        raw = endpoint.half_open()
        raw.sendall(first + GET)
        assert is_closed(raw)
        reason = "a PROXY header from an address that is not in 'proxy_protocol.from'"
        assert errors_of(endpoint) == [("127.0.0.1", reason)]


@PLAIN_AND_TLS
def test_a_second_header(plain: bool) -> None:
    with Endpoint(plain=plain, proxy_protocol=HERE) as endpoint:
        raw = endpoint.half_open()
        raw.sendall(of("192.0.2.1") + of("192.0.2.2") + GET)
        assert is_closed(raw)
        assert errors_of(endpoint) == [("192.0.2.1", "a second PROXY header")]


@PLAIN_AND_TLS
def test_others_are_served_without_a_header(plain: bool) -> None:
    with Endpoint(tell_peer, plain=plain, proxy_protocol=ELSEWHERE) as endpoint:
        assert peer_after(endpoint, b"") == "127.0.0.1"


# --- the networks ---


@pytest.mark.parametrize(
    ("networks", "source", "required"),
    [
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["127.0.0.1/32"], "127.0.0.1", True),
        (["127.0.0.0/31"], "127.0.0.1", True),
        (["127.0.0.0/31"], "127.0.0.2", False),
        (["127.0.0.2/31"], "127.0.0.3", True),
        (["126.0.0.0/7"], "127.255.255.254", True),
        (["0.0.0.0/1"], "127.0.0.1", True),
        (["128.0.0.0/1"], "127.0.0.1", False),
        (["192.0.2.0/24", "127.0.0.0/8"], "127.0.0.9", True),
        (["::ffff:127.0.0.0/104"], "127.0.0.9", True),
        (["::ffff:127.0.0.9"], "127.0.0.9", True),
        (["::/1", "7f00::/8"], "127.0.0.1", False),
        (["::1"], "::1", True),
        (["::/127"], "::1", True),
        (["::/128", "fd00::/8", "127.0.0.1"], "::1", False),
    ],
)
def test_networks(networks: list[str], source: str, required: bool) -> None:
    server = Server(hello, host="::", port=0, tls=None, proxy_protocol=(networks, 5.0))
    server.start()
    target = ("127.0.0.1" if "." in source else "::1", server.address[1])
    with socket.create_connection(target, timeout=20, source_address=(source, 0)) as connected:
        connected.sendall(GET)
        if required:
            assert is_closed(connected)
        else:
            assert read_response(connected)[0] == 200
    server.close()


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        ([], "no network is named"),
        (["10.0.0.0/8", "0.0.0.0/0"], '"0.0.0.0/0" is every address there is'),
        (["::/0"], '"::/0" is every address there is'),
        (["::ffff:0:0/96"], "every address there is"),
        (["10.1.2.3/8"], '"10.1.2.3/8" is not a network: its address has bits beyond the length'),
        (["fd00::1/8"], "bits beyond the length"),
        (["::ffff:10.1.2.3/104"], "bits beyond the length"),
        *(
            ([text], "is neither an IP address nor a network such as")
            for text in (
                "",
                "/",
                "10.0.0.0/",
                "/8",
                "10.0.0.0/33",
                "10.0.0.0/+8",
                "10.0.0.0/-1",
                "10.0.0.0/8/8",
                "10.0.0.0/255.0.0.0",
                "10.0.0.0/99999999999",
                "10.0.0",
                "010.0.0.0/8",
                "fd00::/129",
                "fe80::1%eth0",
                "[::1]",
                "localhost",
                " 10.0.0.0/8",
            )
        ),
    ],
)
def test_what_is_no_network(networks: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Server(hello, host="127.0.0.1", port=0, tls=None, proxy_protocol=(networks, 5.0))


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_what_is_no_time(seconds: float) -> None:
    with pytest.raises(ValueError, match="number of seconds above zero"):
        Server(hello, host="127.0.0.1", port=0, tls=None, proxy_protocol=(["::1"], seconds))


# --- the bounds ---


def test_the_bound_per_address_is_one_of_clients() -> None:
    with Endpoint(
        tell_peer, proxy_protocol=(["127.0.0.1"], 60), handshakes_per_address=3, handshake_grace_seconds=1e-9
    ) as endpoint:
        nameless = [endpoint.half_open() for _ in range(20)]
        silent = []
        for _ in range(4):
            silent.append(endpoint.half_open())
            silent[-1].sendall(of("192.0.2.1"))
            wait_until(lambda: endpoint.server.stats()["handshakes"] == 20 + min(len(silent), 3))
        for own in (header(command=LOCAL), header(family=UNSPECIFIED)):
            silent += [endpoint.half_open() for _ in range(5)]
            for connected in silent[-5:]:
                connected.sendall(own)
        assert is_closed(silent[0])
        wait_until(lambda: endpoint.server.stats()["handshakes"] == 20 + 3 + 10)
        reason = "dropped for newer ones, too many handshakes are pending"
        assert endpoint.server.take_handshake_errors() == [("192.0.2.1", reason)]
        for connected in nameless:
            connected.sendall(of("192.0.2.2"))
        wait_until(lambda: endpoint.server.stats()["handshakes"] == 3 + 3 + 10)
        assert peer_after(endpoint, of("192.0.2.1")) == "192.0.2.1"


def test_all_pending_handshakes_together_have_a_bound() -> None:
    with Endpoint(tell_peer, handshakes=3, proxy_protocol=HERE) as endpoint:
        half_open = [endpoint.half_open() for _ in range(10)]
        assert is_closed(half_open[0])
        assert peer_after(endpoint, of("192.0.2.1")) == "192.0.2.1"
        assert endpoint.server.stats()["handshakes"] <= 3


# --- whatever bytes come ---


@dataclass
class Verdict:
    """What the specification says of a header, in another way than the server reads it."""

    peer: str | None

    @classmethod
    def on(cls, command: int, family: int, block: bytes) -> "Verdict":
        own, refused = cls("127.0.0.1"), cls(None)
        if command == LOCAL:
            return own
        if command != PROXY or family not in (UNSPECIFIED, *ADDRESS_LENGTH):
            return refused
        if family not in (TCP4, TCP6):
            return own
        rest = block[ADDRESS_LENGTH[family] :]
        if len(block) < ADDRESS_LENGTH[family]:
            return refused
        while rest:
            if len(rest) < 3 or len(rest) < 3 + int.from_bytes(rest[1:3]) or rest[0] == 3:
                return refused  # nothing here has a checksum that fits
            rest = rest[3 + int.from_bytes(rest[1:3]) :]
        if family == TCP4:
            return cls(str(IPv4Address(block[:4])))
        source = IPv6Address(block[:16])
        return cls(str(source.ipv4_mapped or source))


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    with Endpoint(tell_peer, plain=True, proxy_protocol=(["127.0.0.1"], 20)) as endpoint:
        yield endpoint


TLVS = st.lists(st.builds(tlv, st.integers(0, 255), st.binary(max_size=20)), max_size=4).map(b"".join)
BLOCKS = st.one_of(
    st.binary(max_size=60),
    st.builds(bytes.__add__, st.sampled_from([12, 36, 216]).flatmap(lambda n: st.binary(min_size=n, max_size=n)), TLVS),
    st.builds(lambda block, junk: block + junk, st.binary(min_size=12, max_size=12), st.binary(max_size=8)),
)


@given(
    command=st.one_of(st.sampled_from([LOCAL, PROXY]), st.integers(0, 255)),
    family=st.one_of(st.sampled_from([TCP4, TCP6, *ADDRESS_LENGTH, UNSPECIFIED]), st.integers(0, 255)),
    block=BLOCKS,
)
def test_every_header_is_read_as_specified(command: int, family: int, block: bytes, server: Endpoint) -> None:
    verdict = Verdict.on(command, family, block)
    raw = server.half_open()
    raw.sendall(header(block, command=command, family=family))
    if verdict.peer is None:
        assert is_closed(raw)
        [(peer, reason)] = server.server.take_handshake_errors()
        assert peer == "127.0.0.1"
        assert reason.startswith("bad PROXY header: ")
    else:
        raw.sendall(GET)
        assert read_response(raw)[2].decode() == verdict.peer
    raw.close()


@given(
    junk=st.one_of(
        st.binary(min_size=1, max_size=300),
        st.integers(0, 15).flatmap(lambda kept: st.binary(max_size=30).map(lambda rest: SIGNATURE[:kept] + rest)),
    )
)
def test_whatever_bytes_come_the_server_goes_on(junk: bytes, server: Endpoint) -> None:
    raw = server.half_open()
    raw.sendall(junk)
    with suppress(OSError):  # it may be reset
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(65536):
            pass
    raw.close()
    assert peer_after(server, of("192.0.2.1")) == "192.0.2.1"
