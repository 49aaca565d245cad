"""How a server takes leave: of everybody (`drain`), and of those who connected under other terms (`set_tls`)."""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import h2.events
import pytest

from keswick._native import Reply, Request, Server
from support.transport import (
    PLAIN,
    Endpoint,
    Http2,
    is_closed,
    read_response,
    refuses_connections,
    server_tls,
    wait_until,
)

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"

PLAIN_AND_TLS = pytest.mark.parametrize("plain", [True, False], ids=["plain", "tls"])


def ends_with_a_fin(connected: socket.socket) -> bool:
    """Whether the server closes the connection in order: no reset, and with TLS a closing alert."""
    return connected.recv(1) == b""


# --- what drain does ---


def test_draining_ends_idle_connections_and_lets_requests_finish() -> None:
    waiting: list[Request] = []

    def handler(request: Request) -> Reply | None:
        if request.path == "/later":
            waiting.append(request)
            return None
        return 200, PLAIN, b"hello"

    with Endpoint(handler) as endpoint:
        idle, busy, unused = endpoint.connect(), endpoint.connect(), endpoint.connect()
        half_open = endpoint.half_open()
        idle.sendall(GET)
        read_response(idle)
        busy.sendall(GET.replace(b"/", b"/later", 1))
        wait_until(lambda: waiting and endpoint.server.stats()["handshakes"] == 1)
        endpoint.server.drain()
        assert is_closed(idle)
        assert is_closed(unused)
        assert is_closed(half_open)
        wait_until(lambda: refuses_connections(endpoint.server))
        assert not endpoint.server.wait_drained(0.05)
        assert waiting[0].respond(200, PLAIN, b"done")
        _, headers, body = read_response(busy)
        assert (body, headers["connection"]) == (b"done", "close")
        assert is_closed(busy)
        assert endpoint.server.wait_drained(20)


def test_draining_http2() -> None:
    waiting: list[Request] = []
    with Endpoint(lambda request: waiting.append(request)) as endpoint, endpoint.http2() as client:
        client.request()
        wait_until(lambda: waiting)
        endpoint.server.drain()
        client.until(h2.events.ConnectionTerminated)
        # What was on its way when the client heard of it is still answered.
        assert waiting[0].respond(200, PLAIN, b"done")
        events = list(client.events())
        assert any(isinstance(event, h2.events.DataReceived) and event.data == b"done" for event in events)
        assert endpoint.server.wait_drained(20)


def test_waiting_for_the_end_lets_other_threads_run() -> None:
    waiting: list[Request] = []
    with Endpoint(lambda request: waiting.append(request)) as endpoint, endpoint.connect() as connected:
        connected.sendall(GET)
        wait_until(lambda: waiting)
        endpoint.server.drain()
        thread = threading.Timer(0.1, lambda: waiting[0].respond(200, PLAIN, b"done"))
        thread.start()
        assert endpoint.server.wait_drained(20)
        thread.join()


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_a_client_that_does_not_go_is_cut_in_the_end(alpn: str) -> None:
    with Endpoint() as endpoint:
        connected = endpoint.connect(alpn=alpn)
        wait_until(lambda: endpoint.server.stats()["connections"] == 1)
        endpoint.server.drain()
        assert endpoint.server.wait_drained(20)
        connected.close()


# --- nothing is lost ---


class Clients:
    """Clients that send POST requests over kept connections without a pause, and never send one again.

    Each connects anew when an answer says that it was the last one, or after each request if it is one that does not
    keep connections, and ends when it is refused a connection.
    """

    def __init__(self, endpoint: Endpoint, count: int, *, keep: bool) -> None:
        self.endpoint = endpoint
        self.keep = keep
        self.answered = 0
        self.lost: list[BaseException] = []
        self.context = endpoint.context()
        self.threads = [threading.Thread(target=self.run) for _ in range(count)]

    def connect(self) -> socket.socket | None:
        try:
            raw = socket.create_connection(self.endpoint.server.address, timeout=20)
        except ConnectionRefusedError:
            return None
        return raw if self.endpoint.plain else self.context.wrap_socket(raw, server_hostname="localhost")

    def run(self) -> None:
        try:
            while connected := self.connect():
                with connected:
                    last = False
                    while not last:
                        connected.sendall(POST)
                        status, headers, body = read_response(connected)
                        assert (status, body) == (200, b"hello")
                        self.answered += 1
                        last = not self.keep or headers.get("connection") == "close"
        except BaseException as error:
            self.lost.append(error)

    def wait_for(self, answers: int) -> None:
        wait_until(lambda: self.answered > answers or self.lost)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for thread in self.threads:
            thread.start()
        try:
            yield
        finally:
            for thread in self.threads:
                thread.join()


@PLAIN_AND_TLS
def test_every_request_of_busy_clients_is_answered(plain: bool) -> None:
    for _ in range(3):
        with Endpoint(plain=plain) as endpoint:
            clients = Clients(endpoint, 30, keep=True)
            with clients.running():
                clients.wait_for(1000)
                endpoint.server.drain(linger=5)
                assert endpoint.server.wait_drained(20)
            assert clients.lost == []
            assert refuses_connections(endpoint.server)


@PLAIN_AND_TLS
def test_clients_that_connect_without_a_pause_are_served_or_refused(plain: bool) -> None:
    for _ in range(3):
        with Endpoint(plain=plain) as endpoint:
            clients = Clients(endpoint, 20, keep=False)
            with clients.running():
                clients.wait_for(300)
                endpoint.server.drain()
            assert clients.lost == []


@PLAIN_AND_TLS
def test_connections_that_the_kernel_has_accepted_are_served(plain: bool) -> None:
    endpoint = Endpoint(plain=plain)
    waiting = [endpoint.half_open() for _ in range(50)]
    if plain:
        for connected in waiting:
            connected.sendall(GET)
    with endpoint:
        endpoint.server.drain()
        context = endpoint.context()
        for connected in waiting:
            if not plain:
                connected = context.wrap_socket(connected, server_hostname="localhost")
                connected.sendall(GET)
            _, headers, body = read_response(connected)
            assert (body, headers["connection"]) == (b"hello", "close")
            assert ends_with_a_fin(connected)
            connected.close()
        assert endpoint.server.wait_drained(20)
        assert refuses_connections(endpoint.server)


def test_what_has_come_in_is_answered_before_an_idle_connection_is_closed() -> None:
    """Also what came in when the server had the demand to close already, and had not got to that connection yet."""
    entered, gates = threading.Semaphore(0), [threading.Event(), threading.Event()]

    def handler(request: Request) -> Reply:
        if request.path != "/":
            entered.release()
            gates[int(request.path[1:])].wait(20)
        return 200, PLAIN, b"hello"

    with Endpoint(handler, plain=True) as endpoint:
        first, second, *idle = [endpoint.connect() for _ in range(20)]
        for connected in (first, second, *idle):
            connected.sendall(GET)
            read_response(connected)
        # The I/O thread waits in the handler, so that it finds the next request and the demand together...
        first.sendall(GET.replace(b"/", b"/0", 1))
        assert entered.acquire(timeout=20)
        second.sendall(GET.replace(b"/", b"/1", 1))
        for connected in idle[:9]:
            connected.sendall(POST)
        endpoint.server.drain()
        gates[0].set()
        # ... and waits again, with the demand at hand.
        assert entered.acquire(timeout=20)
        for connected in idle[9:]:
            connected.sendall(POST)
        gates[1].set()
        for connected in idle:
            _, headers, body = read_response(connected)
            assert (body, headers["connection"]) == (b"hello", "close")
            assert ends_with_a_fin(connected)


@PLAIN_AND_TLS
def test_an_idle_connection_brings_one_more_request(plain: bool) -> None:
    with Endpoint(plain=plain) as endpoint:
        used, unused, silent = endpoint.connect(), endpoint.connect(), endpoint.connect()
        for connected in (used, silent):
            connected.sendall(GET)
            assert "connection" not in read_response(connected)[1]
        wait_until(lambda: endpoint.server.stats()["connections"] == 3)
        endpoint.server.drain(linger=60)
        assert not endpoint.server.wait_drained(1)
        for connected in (used, unused):
            connected.sendall(POST)
            _, headers, body = read_response(connected)
            assert (body, headers["connection"]) == (b"hello", "close")
            assert ends_with_a_fin(connected)
        assert endpoint.server.stats()["connections"] == 1
        # Another word, and the patience has an end.
        endpoint.server.drain()
        assert ends_with_a_fin(silent)
        assert endpoint.server.wait_drained(20)


@PLAIN_AND_TLS
def test_an_idle_connection_is_closed_in_order_in_the_end(plain: bool) -> None:
    with Endpoint(plain=plain) as endpoint, endpoint.connect() as connected:
        connected.sendall(GET)
        read_response(connected)
        endpoint.server.drain(linger=0.5)
        assert ends_with_a_fin(connected)
        assert endpoint.server.wait_drained(20)


def test_a_request_that_is_half_in_is_answered() -> None:
    with Endpoint(plain=True) as endpoint, endpoint.connect() as connected:
        connected.sendall(GET)
        read_response(connected)
        connected.sendall(POST[:20])
        endpoint.server.drain()
        assert not endpoint.server.wait_drained(0.2)
        connected.sendall(POST[20:])
        _, headers, body = read_response(connected)
        assert (body, headers["connection"]) == (b"hello", "close")
        assert ends_with_a_fin(connected)
        assert endpoint.server.wait_drained(20)


def test_requests_sent_before_the_client_has_heard_of_the_end_over_http2() -> None:
    with Endpoint() as endpoint, endpoint.connect(alpn="h2") as connected:
        client = Http2(connected)
        client.request()
        client.until(h2.events.StreamEnded)
        endpoint.server.drain()
        wait_until(lambda: select.select([connected], [], [], 0)[0])
        streams = {client.request("POST") for _ in range(10)}
        answered = {event.stream_id for event in client.events() if isinstance(event, h2.events.StreamEnded)}
        assert answered == streams
        assert endpoint.server.wait_drained(20)


def test_a_linger_that_makes_no_sense_is_none() -> None:
    for linger in (-1.0, float("nan")):
        with Endpoint(plain=True) as endpoint, endpoint.connect() as connected:
            connected.sendall(GET)
            read_response(connected)
            endpoint.server.drain(linger)
            assert ends_with_a_fin(connected)


# --- handshakes that are under way ---


class SlowHandshake:
    """A TLS connection whose client has got the server's part of the handshake and not yet sent the rest of its own."""

    def __init__(self, endpoint: Endpoint, alpn: str) -> None:
        self.raw = endpoint.half_open()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = endpoint.context(alpn=alpn).wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        while True:
            try:
                self.tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                self.raw.sendall(self.outgoing.read())
                self.incoming.write(self.raw.recv(65536))

    def sendall(self, data: bytes) -> None:
        self.tls.write(data)
        self.raw.sendall(self.outgoing.read())

    def recv(self, size: int) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                self.incoming.write(self.raw.recv(65536))
            except ssl.SSLZeroReturnError:
                return b""


def end_old_terms(server: Server) -> None:
    server.set_tls(server_tls(), drain=True)


LEAVES = pytest.mark.parametrize("leave", [end_old_terms, Server.drain])


@LEAVES
def test_a_connection_whose_handshake_is_under_way_is_asked_to_end_over_http1(leave: Callable[[Server], None]) -> None:
    with Endpoint() as endpoint:
        client = SlowHandshake(endpoint, "http/1.1")
        leave(endpoint.server)
        client.sendall(GET)
        _, headers, body = read_response(client)
        assert (body, headers["connection"]) == (b"hello", "close")
        assert client.recv(1) == b""


@LEAVES
def test_a_connection_whose_handshake_is_under_way_is_asked_to_end_over_http2(leave: Callable[[Server], None]) -> None:
    with Endpoint() as endpoint:
        slow = SlowHandshake(endpoint, "h2")
        leave(endpoint.server)
        client = Http2(slow)
        client.request()
        events = list(client.events())
        assert any(isinstance(event, h2.events.ConnectionTerminated) for event in events)
        assert [event.data for event in events if isinstance(event, h2.events.DataReceived)] == [b"hello"]


def test_a_drained_server_waits_for_handshakes_and_drops_them_in_the_end() -> None:
    with Endpoint() as endpoint:
        slow = SlowHandshake(endpoint, "http/1.1")
        silent = endpoint.half_open()
        wait_until(lambda: endpoint.server.stats()["handshakes"] == 2)
        endpoint.server.drain()
        assert not endpoint.server.wait_drained(0.2)
        slow.sendall(GET)
        assert read_response(slow)[0] == 200
        assert is_closed(silent)
        assert endpoint.server.wait_drained(20)
        assert endpoint.server.stats()["handshakes"] == 0
