"""Every bound on what a stranger can grow, reached on purpose, with small limits."""

import socket
import threading
import time

import h2.errors
import h2.events
import h2.settings
import pytest

from keswick._native import DEFAULT_LIMITS, Reply, Request, Server
from support.transport import PLAIN, Endpoint, Http2, is_closed, read_response, wait_until

BOTH = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Waiting:
    """A handler that answers when it is told to, and at once on the path /now."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def __call__(self, request: Request) -> Reply | None:
        if request.path == "/now":
            return 200, PLAIN, b"now"
        self.requests.append(request)
        return None

    def answer(self, body: bytes = b"hello") -> None:
        for request in self.requests:
            request.respond(200, PLAIN, body)
        self.requests.clear()


def test_every_limit_has_a_default_and_a_name() -> None:
    Server(Waiting(), host="127.0.0.1", port=0, tls=None, limits=DEFAULT_LIMITS).close()
    with pytest.raises(ValueError, match='no limit of the name "conections"'):
        Endpoint(conections=1)
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="streams has to be a number above zero"):
            Endpoint(streams=wrong)


@BOTH
def test_requests_in_flight(http2: bool) -> None:
    handler = Waiting()
    with Endpoint(handler, requests=2) as endpoint, endpoint.client(http2=http2) as client:
        others = [endpoint.connect() for _ in range(2)]
        for connected in others:
            connected.sendall(GET)
        wait_until(lambda: len(handler.requests) == 2)
        reply = client.post("/now", content=b"body")
        assert (reply.status_code, reply.text) == (503, "overload")
        handler.answer()
        for connected in others:
            assert read_response(connected)[0] == 200
        wait_until(lambda: endpoint.server.stats()["requests"] == 0)
        assert client.get("/now").text == "now"
        assert endpoint.server.stats()["overload_total"] == 1


@BOTH
def test_buffered_bytes_of_requests(http2: bool) -> None:
    handler = Waiting()
    with Endpoint(handler, buffered_bytes=100_000) as endpoint, endpoint.client(http2=http2) as client:
        other = endpoint.connect()
        other.sendall(b"POST /large HTTP/1.1\r\nHost: l\r\nContent-Length: 90000\r\n\r\n" + b"x" * 90_000)
        wait_until(lambda: handler.requests)
        assert endpoint.server.stats()["buffered"] == 90_000
        assert client.post("/now", content=b"x" * 900).text == "now"
        assert client.post("/large", content=b"x" * 20_000).text == "overload"
        handler.answer()
        assert read_response(other)[0] == 200
        wait_until(lambda: endpoint.server.stats()["buffered"] == 0)
        assert client.get("/now").text == "now"
        assert endpoint.server.take_own_answers() == [("127.0.0.1", "/large", 503)]


def test_the_newest_1024_own_answers_are_kept() -> None:
    handler = Waiting()
    with Endpoint(handler, requests=1) as endpoint, endpoint.connect() as one, endpoint.connect() as other:
        one.sendall(GET)
        wait_until(lambda: handler.requests)
        other.sendall(b"".join(b"GET /%d?query HTTP/1.1\r\nHost: l\r\n\r\n" % number for number in range(1100)))
        wait_until(lambda: endpoint.server.stats()["overload_total"] == 1100)
        answers = endpoint.server.take_own_answers()
        assert answers == [("127.0.0.1", f"/{number}", 503) for number in range(76, 1100)]
        assert endpoint.server.take_own_answers() == []


@BOTH
def test_buffered_bytes_of_answers_that_nobody_reads(http2: bool) -> None:
    def handler(request: Request) -> Reply:
        return 200, PLAIN, b"x" * 20_000_000 if request.path == "/lots" else b"now"

    with Endpoint(handler, buffered_bytes=1_000_000) as endpoint:
        slow = endpoint.connect(alpn="h2" if http2 else "http/1.1")
        if http2:
            Http2(slow).request(path="/lots")
        else:
            slow.sendall(GET.replace(b"/", b"/lots", 1))
        wait_until(lambda: endpoint.server.stats()["buffered"] > 1_000_000)
        with endpoint.client(http2=http2) as client:
            assert client.get("/now").text == "overload"
            slow.close()
            wait_until(lambda: endpoint.server.stats()["buffered"] == 0)
            assert client.get("/now").text == "now"


@BOTH
def test_connections(http2: bool) -> None:
    with Endpoint(connections=2) as endpoint:
        kept = [endpoint.connect() for _ in range(2)]
        wait_until(lambda: endpoint.server.stats()["connections"] == 2)
        with endpoint.client(http2=http2) as client:
            reply = client.get("/")
            assert (reply.status_code, reply.text) == (503, "overload")
            wait_until(lambda: endpoint.server.stats()["connections"] == 2)
            for connected in kept:
                connected.sendall(GET)
                assert read_response(connected)[0] == 200
                connected.close()
            wait_until(lambda: endpoint.server.stats()["connections"] == 0)
        with endpoint.client(http2=http2) as client:
            assert client.get("/").text == "hello"


def test_far_too_many_connections_are_closed_at_once() -> None:
    with Endpoint(plain=True, connections=1) as endpoint:
        kept = [endpoint.connect() for _ in range(257)]
        wait_until(lambda: endpoint.server.stats()["connections"] == 257)
        with endpoint.connect() as one_more:
            assert is_closed(one_more)
        assert endpoint.server.stats()["refused_total"] == 1
        for connected in kept:
            connected.close()


def test_a_crowd_of_one_address_that_waits_for_nobody_loses_none() -> None:
    with Endpoint(plain=True, handshakes_per_address=8) as endpoint:
        crowd = [socket.socket() for _ in range(200)]
        for connected in crowd:
            connected.setblocking(False)
            connected.connect_ex(endpoint.server.address)
        wait_until(lambda: endpoint.server.stats()["connections"] == 200)
        assert endpoint.server.stats()["refused_total"] == 0
        for connected in crowd:
            connected.close()


@BOTH
def test_a_slow_body_is_answered(http2: bool) -> None:
    with Endpoint(Waiting(), body_seconds=0.1) as endpoint:
        if http2:
            with endpoint.http2() as client:
                stream = client.request("POST", end=False, **{"content-length": "10"})
                data = b"".join(
                    e.data for e in client.until(h2.events.StreamEnded) if isinstance(e, h2.events.DataReceived)
                )
                assert (stream, data) == (1, b"timeout")
        else:
            with endpoint.connect() as connected:
                connected.sendall(b"POST / HTTP/1.1\r\nHost: l\r\nContent-Length: 10\r\n\r\nbod")
                status, headers, body = read_response(connected)
                assert (status, body, headers["connection"]) == (408, b"timeout", "close")
                assert is_closed(connected)
        assert endpoint.server.stats()["timeout_total"] == 1
        assert endpoint.server.take_own_answers() == [("127.0.0.1", "/", 408)]


def test_a_slow_header_is_cut() -> None:
    with Endpoint(header_seconds=0.1) as endpoint, endpoint.connect() as connected:
        connected.sendall(GET)
        assert read_response(connected)[0] == 200
        connected.sendall(b"GET / HT")
        assert is_closed(connected)


def test_an_idle_connection_outlives_the_time_for_a_header() -> None:
    with Endpoint(header_seconds=0.1) as endpoint, endpoint.connect() as connected:
        connected.sendall(GET)
        read_response(connected)
        time.sleep(0.5)
        connected.sendall(GET)
        assert read_response(connected)[0] == 200


@pytest.mark.parametrize("used", [True, False])
def test_an_idle_http1_connection_is_closed(used: bool) -> None:
    with Endpoint(idle_seconds=0.1) as endpoint, endpoint.connect() as connected:
        if used:
            connected.sendall(GET)
            read_response(connected)
        assert is_closed(connected)


@pytest.mark.parametrize("used", [True, False])
def test_an_idle_http2_connection_is_ended(used: bool) -> None:
    with Endpoint(idle_seconds=0.1) as endpoint, endpoint.http2() as client:
        if used:
            client.request()
            client.until(h2.events.StreamEnded)
        events = list(client.events())
        ends = [event for event in events if isinstance(event, h2.events.ConnectionTerminated)]
        assert {event.error_code for event in ends} == {0}


def test_pings_keep_no_idle_connection_open() -> None:
    with Endpoint(idle_seconds=0.2) as endpoint, endpoint.http2() as client:
        ended = threading.Event()

        def ping() -> None:
            while not ended.wait(0.01):
                try:
                    client.h2.ping(b"12345678")
                    client.flush()
                except Exception:
                    return

        thread = threading.Thread(target=ping)
        thread.start()
        try:
            client.until(h2.events.ConnectionTerminated)
        finally:
            ended.set()
            thread.join()


@BOTH
def test_a_request_that_waits_is_not_idle(http2: bool) -> None:
    handler = Waiting()
    with Endpoint(handler, idle_seconds=0.1, header_seconds=0.1, body_seconds=0.1, write_seconds=0.1) as endpoint:
        timer = threading.Timer(0.6, lambda: handler.answer(b"at last"))
        timer.start()
        with endpoint.client(http2=http2) as client:
            assert client.get("/").text == "at last"
        timer.join()


@BOTH
@pytest.mark.parametrize("write_seconds", [0.2])
def test_a_client_that_reads_nothing_is_cut(http2: bool, write_seconds: float) -> None:
    with Endpoint(lambda _request: (200, PLAIN, b"x" * 20_000_000), write_seconds=write_seconds) as endpoint:
        connected = endpoint.connect(alpn="h2" if http2 else "http/1.1")
        if http2:
            Http2(connected).request()
        else:
            connected.sendall(GET)
        wait_until(lambda: endpoint.server.stats()["requests"] == 1)
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)
        wait_until(lambda: endpoint.server.stats()["buffered"] == 0)
        connected.close()


def test_a_client_that_opens_no_window_is_cut() -> None:
    """The socket takes bytes, and PING is answered, but the answer does not go on."""
    with Endpoint(lambda _request: (200, PLAIN, b"x" * 100), write_seconds=0.2) as endpoint, endpoint.http2() as client:
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1})
        client.flush()
        client.until(h2.events.SettingsAcknowledged)
        client.reads = False
        client.request()
        client.until(h2.events.DataReceived)
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)


def test_a_client_that_reads_slowly_is_not_cut() -> None:
    with Endpoint(lambda _request: (200, PLAIN, b"x" * 20_000_000), write_seconds=0.5) as endpoint:
        with endpoint.connect() as connected:
            connected.sendall(GET)
            start = time.monotonic()
            total = 0
            # Some 40 MB/s, for about as long as a client that reads nothing would have.
            while total < 20_000_000:
                received = len(connected.recv(65_536))
                assert received, f"cut after {total} bytes"
                total += received
                time.sleep(max(0.0, start + total / 20_000_000 - time.monotonic()))
        assert endpoint.server.stats()["requests"] == 0


@BOTH
@pytest.mark.parametrize("size", [5_000, 12_000])
def test_too_large_a_header(size: int, http2: bool) -> None:
    with Endpoint(header_bytes=4_000) as endpoint, endpoint.client(http2=http2) as client:
        assert client.get("/", headers={"x": "y" * size}).status_code == 431
        assert client.get("/", headers={"x": "y" * 3_000}).status_code == 200


def test_far_too_large_a_header() -> None:
    with Endpoint(header_bytes=4_000) as endpoint:
        with endpoint.client() as client:
            assert client.get("/", headers={"x": "y" * 100_000}).status_code == 431
        with endpoint.http2() as http2_client:
            http2_client.request(x="y" * 100_000)
            end = http2_client.until(h2.events.ConnectionTerminated)[-1]
            assert isinstance(end, h2.events.ConnectionTerminated)
            assert end.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(("headers", "most"), [(DEFAULT_LIMITS["headers"], 100), (20, 20), (200, 200)])
def test_too_many_headers(headers: float, most: int) -> None:
    with Endpoint(headers=headers) as endpoint:
        for lines, status in ((most, 200), (most + 1, 431)):
            with endpoint.connect() as connected:
                connected.sendall(b"GET / HTTP/1.1\r\nHost: l\r\n" + b"x: y\r\n" * (lines - 1) + b"\r\n")
                assert read_response(connected)[0] == status


def test_a_bound_of_headers_beyond_all_measure() -> None:
    with Endpoint(headers=1e18) as endpoint, endpoint.client() as client:
        assert client.get("/", headers={f"x-{number}": "y" for number in range(1000)}).status_code == 200


def test_streams_of_one_connection() -> None:
    handler = Waiting()
    with Endpoint(handler, streams=3) as endpoint, endpoint.http2() as client:
        client.until(h2.events.RemoteSettingsChanged)
        assert client.h2.remote_settings.max_concurrent_streams == 3
        for _ in range(3):
            client.request()
        # This client does not care.
        client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 100
        client.h2.remote_settings.acknowledge()
        client.request()
        reset = client.until(h2.events.StreamReset)[-1]
        assert isinstance(reset, h2.events.StreamReset)
        assert reset.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
        assert len(handler.requests) == 3


def test_rapid_resets_end_the_connection() -> None:
    with Endpoint(Waiting()) as endpoint, endpoint.http2() as client:

        def reset_for_ever() -> None:
            fields = [(":method", "GET"), (":path", "/"), (":scheme", "https"), (":authority", "localhost")]
            while True:
                for _ in range(100):
                    stream = client.h2.get_next_available_stream_id()
                    client.h2.send_headers(stream, fields)
                    client.h2.reset_stream(stream)
                client.flush()

        with pytest.raises(OSError, match=r"EOF|Broken pipe|reset|closed"):
            reset_for_ever()
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)
        with endpoint.client() as good:
            assert good.get("/now").text == "now"


def test_a_good_client_gets_in_past_half_open_connections() -> None:
    with Endpoint(handshakes=100, handshakes_per_address=50, handshake_grace_seconds=1e-9) as endpoint:
        half_open = [endpoint.half_open() for _ in range(500)]
        for _ in range(20):
            with endpoint.client() as client:
                assert client.get("/").text == "hello"
        assert endpoint.server.stats()["handshakes"] <= 50
        assert endpoint.server.stats()["refused_total"] >= 450
        # The oldest ones have had to go, the newest ones are still there.
        assert is_closed(half_open[0])
        reason = "dropped for newer ones, too many handshakes are pending"
        assert ("127.0.0.1", reason) in endpoint.server.take_handshake_errors()
        for connected in half_open:
            connected.close()
        wait_until(lambda: endpoint.server.stats()["handshakes"] == 0)


def test_a_crowd_of_one_address_is_let_in_while_it_makes_haste() -> None:
    with Endpoint(handshakes_per_address=3, handshake_grace_seconds=60) as endpoint:
        crowd = [endpoint.half_open() for _ in range(50)]
        wait_until(lambda: endpoint.server.stats()["handshakes"] == 50)
        for connected in crowd:
            with endpoint.context().wrap_socket(connected, server_hostname="localhost") as client:
                client.sendall(GET)
                assert read_response(client)[0] == 200
        assert endpoint.server.stats()["refused_total"] == 0


def test_a_crowd_of_one_address_makes_room_for_others() -> None:
    with Endpoint(handshakes=20, handshakes_per_address=5, handshake_grace_seconds=60) as endpoint:
        first = endpoint.half_open(source="127.0.0.2")
        crowd = [endpoint.half_open() for _ in range(40)]
        wait_until(lambda: endpoint.server.stats()["refused_total"] == 21)
        assert is_closed(crowd[20])
        with endpoint.context().wrap_socket(first, server_hostname="localhost") as client:
            client.sendall(GET)
            assert read_response(client)[0] == 200
        for connected in crowd:
            connected.close()


def test_all_pending_handshakes_together() -> None:
    with Endpoint(handshakes=3) as endpoint:
        half_open = []
        for source in range(1, 6):
            half_open.append(endpoint.half_open(source=f"127.0.0.{source}"))
            wait_until(lambda: endpoint.server.stats()["handshakes"] == min(len(half_open), 3))
        assert is_closed(half_open[0])
        wait_until(lambda: endpoint.server.stats()["refused_total"] == 2)
        assert [peer for peer, _ in endpoint.server.take_handshake_errors()] == ["127.0.0.1", "127.0.0.2"]
        for connected in half_open:
            connected.close()


def test_a_slow_handshake_is_dropped() -> None:
    with Endpoint(handshake_seconds=0.1) as endpoint, endpoint.connect() as kept:
        slow = endpoint.half_open()
        slow.sendall(b"\x16\x03\x01")
        assert is_closed(slow)
        assert endpoint.server.take_handshake_errors() == [("127.0.0.1", "timed out")]
        kept.sendall(GET)
        assert read_response(kept)[0] == 200
