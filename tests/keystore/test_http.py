import errno
import os
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from keswick import roots
from keswick.keystore import KeyStoreError, KeyStoreUnreachable, http
from keswick.keystore.http import Answer, HttpService
from support.certificates import Pair, make
from support.connect_proxy import ConnectProxy
from support.rest_service import Reply, Request, RestService
from support.sockets import Script, answer_with, free_port, listening, read_request, tls, until_closed
from support.transport import wait_until

NAME = "the key store 'test'"
SECRET = "8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Service(RestService):
    """Answers whatever is asked."""

    def handle(self, request: Request) -> Reply:
        return Reply(200, {"ok": True})


Open = Callable[..., HttpService]


@pytest.fixture(autouse=True)
def tries_that_follow_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "pause_seconds", lambda: 0.01)
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)


@pytest.fixture
def new_service() -> Iterator[Open]:
    with ExitStack() as stack:

        def new_service(endpoint: str | int, **options: Any) -> HttpService:
            """At a URL, or a port of this machine without TLS."""
            url = endpoint if isinstance(endpoint, str) else f"http://127.0.0.1:{endpoint}"
            service = HttpService(NAME, url, **options)
            stack.callback(service.close)
            return service

        yield new_service


@pytest.fixture
def peer() -> Iterator[Service]:
    with Service() as peer:
        yield peer


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("p256", sans=["127.0.0.1", "localhost", "::1"], eku=["server"])


@pytest.fixture
def ca(pair: Pair, tmp_path: Path) -> str:
    path = tmp_path / "ca.crt"
    path.write_bytes(pair.cert_pem)
    return str(path)


def at(port: int, *, host: str = "127.0.0.1") -> str:
    return f"https://{host}:{port}"


# --- one call ---


def test_what_is_sent_and_what_comes_back(new_service: Open, peer: Service) -> None:
    service = new_service(f" {peer.endpoint}/base// ")
    answer = service.call("PUT", "/a%2Fb?c=%20d", body={"x": "ü"}, headers={"X-Token": "t"})
    (request,) = peer.requests
    assert (request.method, request.target, request.json) == ("PUT", "/base/a%2Fb?c=%20d", {"x": "ü"})
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["X-Token"] == "t"
    assert request.headers["User-Agent"].startswith("keswick/")
    assert (answer.status, answer.json(), answer.retried, answer.reason) == (200, {"ok": True}, False, "200 OK")
    assert answer.headers["content-TYPE"] == "application/json"


def test_bytes_are_sent_as_they_are_and_nothing_is_no_body(new_service: Open, peer: Service) -> None:
    service = new_service(peer.endpoint)
    service.call("POST", "/", body=b"\x00\xff", headers={"Content-Type": "text/plain"})
    service.call("POST", "/")
    assert [request.body for request in peer.requests] == [b"\x00\xff", b""]
    assert [request.headers["Content-Type"] for request in peer.requests] == ["text/plain", None]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 200_000, b"1" * 5000])
def test_what_is_no_json_is_none(body: bytes) -> None:
    assert Answer(200, {}, body).json() is None


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\nX: y\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nok",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_every_kind_of_body_is_read(new_service: Open, answer: bytes) -> None:
    with listening(answer_with(answer)) as port:
        assert new_service(port).call("GET", "/").body == b"ok"


def test_no_answer_is_taken_for_that_to_the_next_request(new_service: Open) -> None:
    """As it would be if something else than the answer came before it, or after it."""
    odd = [
        (b"HTTP/1.1 102 Processing\r\n\r\n", b""),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b""),
        (b"", OK),
        (b"", b"\r\n" + OK),
    ]

    def script(connection: socket.socket) -> None:
        while request := read_request(connection):
            name = request.split()[1]
            before, after = odd[int(name[1:])]
            connection.sendall(before)
            time.sleep(0.02)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b%b" % (len(name), name, after))

    with listening(script) as port:
        service = new_service(port)
        for number in [*range(len(odd)), *range(len(odd))]:
            assert service.call("GET", f"/{number}").body == b"/%d" % number


def test_redirections_are_not_followed(new_service: Open, peer: Service) -> None:
    """A token, or a key, would go where nobody was told to trust."""
    with Service() as elsewhere:
        moved = Reply(307, b"", headers={"Location": f"{elsewhere.endpoint}/x"})
        with peer.instead(lambda request: moved):
            answer = new_service(peer.endpoint).call("POST", "/", body={"key": SECRET}, headers={"Authorization": "t"})
        assert answer.status == 307
        assert elsewhere.requests == []


def test_nothing_shows_what_was_sent_or_answered(new_service: Open, peer: Service) -> None:
    reply = Reply(200, {"key": SECRET}, headers={"Set-Cookie": SECRET})
    service = new_service(peer.endpoint)
    with peer.instead(lambda request: reply):
        answer = service.call("POST", "/", body={"key": SECRET})
    assert SECRET in answer.body.decode()
    assert SECRET not in f"{answer!r}{service!r}"


# --- time limits ---


def trickle(begin: bytes, again: bytes) -> Script:
    """Answers with `begin`, and then again and again with a little, for ever."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(begin)
        while True:
            connection.sendall(again)
            time.sleep(0.02)

    return script


SLOW: dict[str, Script] = {
    "nothing": until_closed,
    "the status": trickle(b"HTTP/1.1 200 ", b"O"),
    "headers": trickle(b"HTTP/1.1 200 OK\r\n", b"X-More: x\r\n"),
    "one header": trickle(b"HTTP/1.1 200 OK\r\nX-More: ", b"x"),
    "answers before the answer": trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "the body": trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
    "a body without end": trickle(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "a chunk": trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n", b"x"),
    "the size of a chunk": trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "what follows chunks": trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: x\r\n"),
}


@pytest.mark.parametrize("what", SLOW)
@pytest.mark.parametrize("secured", [False, True])
def test_an_answer_that_takes_too_long_ends_in_time(
    new_service: Open, pair: Pair, ca: str, what: str, secured: bool
) -> None:
    script = tls(pair, SLOW[what]) if secured else SLOW[what]
    with listening(script) as port:
        service = new_service(at(port), ca=ca) if secured else new_service(port)
        begin = time.monotonic()
        with pytest.raises(KeyStoreUnreachable, match="did not answer in time"):
            service.call("GET", "/", seconds=0.5)
        assert 0.4 < time.monotonic() - begin < 5


def test_a_handshake_that_takes_too_long_ends_in_time(new_service: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.3)
    with listening(until_closed) as port:
        begin = time.monotonic()
        with pytest.raises(KeyStoreUnreachable, match="in time"):
            new_service(at(port)).call("GET", "/", seconds=1)
        assert time.monotonic() - begin < 5


def test_time_that_is_over_is_told(new_service: Open, peer: Service) -> None:
    service = new_service(peer.endpoint)
    service.call("GET", "/")  # a connection is there
    with peer.instead(lambda request: time.sleep(0.2)), pytest.raises(KeyStoreUnreachable, match="in time"):
        service.call("GET", "/", seconds=-1)


@pytest.fixture
def deaf() -> Iterator[tuple[str, int]]:
    """An address where nobody answers who wants to connect."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        for _ in range(3):  # the queue is full then
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield listener.getsockname()


def test_all_addresses_of_a_host_share_the_time(
    new_service: Open, deaf: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.6)
    addresses: list[tuple[str, int]] = [deaf] * 6
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", one) for one in addresses]
    )
    service = new_service("http://many.example")
    begin = time.monotonic()
    with pytest.raises(KeyStoreUnreachable, match="cannot be reached in time"):
        service.call("GET", "/")
    assert 0.5 < time.monotonic() - begin < 3
    with listening(answer_with(OK)) as port:
        addresses[1:] = [("127.0.0.1", free_port()), ("127.0.0.1", port)]
        assert service.call("GET", "/").body == b"ok"


def test_the_wait_for_a_connection_is_part_of_the_time(
    new_service: Open, peer: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MOST_CONNECTIONS", 1)
    service = new_service(peer.endpoint)
    released = threading.Event()

    def hold(request: Request) -> None:
        released.wait(10)

    with peer.instead(hold), ThreadPoolExecutor(1) as pool:
        held = pool.submit(service.call, "GET", "/")
        wait_until(lambda: peer.requests)
        begin = time.monotonic()
        with pytest.raises(KeyStoreUnreachable, match="all 1 connections to the key store 'test' are in use"):
            service.call("GET", "/", seconds=0.2)
        assert time.monotonic() - begin < 5
        released.set()
        assert held.result().status == 200
    assert service.call("GET", "/").status == 200


# --- size ---


def test_an_answer_may_be_as_large_as_allowed_but_no_larger(new_service: Open, peer: Service) -> None:
    service = new_service(peer.endpoint)
    with peer.instead(lambda request: Reply(200, b"x" * 1000)):
        assert len(service.call("GET", "/", max_reply=1000).body) == 1000
        with pytest.raises(KeyStoreError, match="answered with more than 999 bytes") as told:
            service.call("GET", "/", max_reply=999)
    assert not isinstance(told.value, KeyStoreUnreachable)
    assert len(peer.requests) == 2  # nothing would change
    assert service.call("GET", "/").status == 200


@pytest.mark.parametrize(
    "begin",
    [b"", b"Content-Length: 99999999999\r\n", b"Transfer-Encoding: chunked\r\n"],
)
def test_an_answer_without_end_is_read_no_further(new_service: Open, begin: bytes) -> None:
    chunk = b"x" * (1 << 16)
    if b"chunked" in begin:
        chunk = b"10000\r\n" + chunk + b"\r\n"

    def flood(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + begin + b"\r\n")
        while True:
            connection.sendall(chunk)

    with listening(flood) as port, pytest.raises(KeyStoreError, match="more than 1000000 bytes"):
        new_service(port).call("GET", "/", max_reply=1_000_000)


def test_a_large_answer_is_read_at_once(new_service: Open) -> None:
    """Not in time that grows with its square."""
    large = b"x" * (30 << 20)
    with listening(answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(large) + large)) as port:
        assert new_service(port).call("GET", "/", seconds=4, retries=0).body == large


# --- connections ---


def test_a_connection_is_used_again(new_service: Open, peer: Service) -> None:
    service = new_service(peer.endpoint)
    for status in (200, 404, 500, 204) * 5:
        with peer.instead(lambda request, status=status: Reply(status, b"no")):  # type: ignore[misc]
            service.call("GET", "/", retries=0)
    assert peer.connections == 1


def test_as_many_connections_are_kept_as_were_needed_at_once(new_service: Open, peer: Service) -> None:
    service = new_service(peer.endpoint)
    together = threading.Barrier(8)
    peer._handling = Unlocked()  # type: ignore[assignment]

    def meet(request: Request) -> None:
        together.wait(10)

    for _ in range(3):
        with peer.instead(meet), ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: service.call("GET", "/"), range(8)))
    assert peer.connections == 8


class Unlocked:
    """Instead of a lock: requests are handled at the same time."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_a_kept_connection_that_the_service_has_closed_is_not_used(new_service: Open, peer: Service) -> None:
    service = new_service(peer.endpoint)
    for number in range(3):
        assert not service.call("POST", "/", retries=0).retried
        peer.restart()
        assert len(peer.requests) == number + 1


def test_kept_connections_that_have_died_cost_one_try(new_service: Open) -> None:
    """As of a load balancer that has lost its server: each ends with the next request. A call has three tries."""
    dead = threading.Event()
    together = threading.Barrier(8)
    served: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        is_old = not dead.is_set()
        while request := read_request(connection):
            if is_old and dead.is_set():
                return
            if is_old:
                together.wait(10)
            served.append(request)
            connection.sendall(OK)

    with listening(serve) as port:
        service = new_service(port)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: service.call("GET", "/"), range(8)))
        dead.set()
        served.clear()
        answer = service.call("POST", "/create")
        assert (answer.status, answer.retried) == (200, True)
        assert not service.call("GET", "/").retried
        assert [request.split()[1] for request in served] == [b"/create", b"/"]


def test_firewalls_see_that_a_kept_connection_is_alive(
    new_service: Open, peer: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[socket.socket] = []
    connect = http._Connection._new_conn

    def remember(connection: http._Connection) -> socket.socket:
        made.append(connect(connection))
        return made[-1]

    monkeypatch.setattr(http._Connection, "_new_conn", remember)
    new_service(peer.endpoint).call("GET", "/")
    (kept,) = made
    assert kept.getpeername()[1] == peer.port
    assert kept.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert kept.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
    assert 0 < kept.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) < 12_000


def test_close_ends_kept_connections_at_once_and_others_after_their_call(new_service: Open, peer: Service) -> None:
    service = new_service(peer.endpoint)
    service.call("GET", "/")
    released = threading.Event()

    def hold(request: Request) -> None:
        released.wait(10)

    with peer.instead(hold), ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(service.call, "GET", "/held")
        wait_until(lambda: peer.seen("GET", "/held"))
        service.close()
        service.close()
        with pytest.raises(KeyStoreError, match="the key store 'test' is closed"):
            service.call("GET", "/")
        released.set()
        assert under_way.result().status == 200
    wait_until(lambda: not peer._open)
    assert len(peer.requests) == 2


def test_nothing_is_left_open_by_what_goes_wrong(new_service: Open, peer: Service) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    scripts: list[Script] = [
        answer_with(b""),
        answer_with(b"SSH-2.0-x\r\n"),
        answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"),
    ]
    for script in scripts:
        with listening(script) as port:
            service = new_service(port)
            before = count()
            for _ in range(5):
                with pytest.raises(KeyStoreUnreachable):
                    service.call("GET", "/")
            wait_until(lambda before=before: count() <= before)  # type: ignore[misc]


# --- another try ---


@pytest.mark.parametrize(
    ("status", "tries"), [(500, 3), (502, 3), (503, 3), (504, 3), (501, 1), (429, 1), (400, 1), (307, 1), (204, 1)]
)
def test_a_service_in_trouble_is_asked_again(new_service: Open, peer: Service, status: int, tries: int) -> None:
    with peer.instead(lambda request: Reply(status, {"error": "no"})):
        answer = new_service(peer.endpoint).call("POST", "/", body={"a": 1})
    assert (answer.status, answer.retried) == (status, tries > 1)
    assert [request.json for request in peer.requests] == [{"a": 1}] * tries


def test_a_store_says_what_is_worth_another_try(new_service: Open, peer: Service) -> None:
    service = new_service(peer.endpoint, should_retry=lambda status: status == 412)
    with peer.instead(lambda request: Reply(412 if len(peer.requests) == 1 else 503)):
        answer = service.call("GET", "/")
    assert (answer.status, answer.retried, len(peer.requests)) == (503, True, 2)


LOST: dict[str, bytes] = {
    "no answer": b"",
    "half a status": b"HTTP/1.1 2",
    "half the headers": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    "half of its chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    "no last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
}


@pytest.mark.parametrize("answer", LOST.values(), ids=LOST.keys())
@pytest.mark.parametrize("secured", [False, True])
def test_an_answer_that_was_lost_is_asked_for_again_and_remembered(
    new_service: Open, pair: Pair, ca: str, answer: bytes, secured: bool
) -> None:
    answers = [answer, answer, OK]

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answers.pop(0))
        if isinstance(connection, ssl.SSLSocket):
            connection.shutdown(socket.SHUT_RDWR)  # as of a process that was killed: TLS says nothing

    with listening(tls(pair, script) if secured else script) as port:

        def call(**options: Any) -> Answer:
            return new_service(at(port) if secured else port, ca=ca if secured else None).call("POST", "/", **options)

        found = call()
        assert (found.body, found.retried, answers) == (b"ok", True, [])
        answers += [answer] * 4
        with pytest.raises(KeyStoreUnreachable, match=r"without an answer|no HTTP"):
            call()
        with pytest.raises(KeyStoreUnreachable):
            call(retries=0)
        assert answers == []


def test_a_connection_that_breaks_while_the_request_is_sent_was_lost(new_service: Open, pair: Pair, ca: str) -> None:
    """A handshake that worked is no reason to blame TLS, and the service may have what it needs."""
    times = 0

    def script(connection: socket.socket) -> None:
        nonlocal times
        times += 1
        if times == 1:
            connection.recv(1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # a reset
            return
        while b"END" not in connection.recv(1 << 16):
            pass
        connection.sendall(OK)

    with listening(tls(pair, script)) as port:
        answer = new_service(at(port), ca=ca).call("PUT", "/", body=b"x" * (8 << 20) + b"END")
    assert (answer.body, answer.retried) == (b"ok", True)


def test_without_time_for_another_try_there_is_none(
    new_service: Open, peer: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "pause_seconds", lambda: 60.0)
    with peer.instead(lambda request: Reply(503)):
        answer = new_service(peer.endpoint).call("GET", "/")
    assert (answer.status, answer.retried, len(peer.requests)) == (503, False, 1)


# --- what an operator is told ---


def test_who_does_not_listen_is_told_at_once(new_service: Open) -> None:
    port = free_port()
    with pytest.raises(KeyStoreUnreachable) as told:
        new_service(port).call("GET", "/")
    assert str(told.value) == (
        f"{NAME} at http://127.0.0.1:{port} cannot be reached ({os.strerror(errno.ECONNREFUSED)}): is it running, and "
        "the endpoint right?"
    )


def test_a_host_that_nobody_knows_is_told(new_service: Open) -> None:
    with pytest.raises(KeyStoreUnreachable, match=r"its host name is not known; look at the endpoint and at DNS"):
        new_service("https://nowhere.invalid").call("GET", "/")


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",  # TLS: that was no handshake
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told(new_service: Open, answer: bytes) -> None:
    with (
        listening(answer_with(answer)) as port,
        pytest.raises(KeyStoreUnreachable, match=r"answered with what is no HTTP: is the endpoint right\?"),
    ):
        new_service(port).call("GET", "/")


def test_an_answer_that_cannot_be_used_is_told(new_service: Open, peer: Service) -> None:
    service = new_service(peer.endpoint)
    with peer.instead(lambda request: Reply(403, b"[]")):
        with pytest.raises(KeyStoreError, match=r"^the key store 'test' at http://\S+ answered 403 Forbidden$") as told:
            service.json("GET", "/", 200)
        assert not isinstance(told.value, KeyStoreUnreachable)
        with pytest.raises(KeyStoreError, match=r"no JSON object: is 'http://.*' the right one"):
            service.json("GET", "/", 403)
    for status in (502, 503, 504):
        assert isinstance(service.unexpected(Answer(status, {}, b"")), KeyStoreUnreachable)
    words = str(service.unexpected(Answer(400, {}, b""), "a\r\n\x1b[31mb\u202e" + "x" * 1000))
    assert words.endswith("answered 400 Bad Request: a ?[31mb?" + "x" * 291)


# --- endpoints ---


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "store.example",
        "store.example:443",
        "ftp://store.example",
        "https://",
        "https:///path",
        "https://a b",
        "https://host:many",
        "https://host:65536",
        "https://host:0",
        "https://[::1",
        "https://[v1.x]",
        "https://a..b",
        "https://a\0b",
        f"https://{'a' * 64}.example",
        "https://host/?x=y",
        "https://host/#x",
    ],
)
def test_an_endpoint_that_is_none_is_told(new_service: Open, endpoint: str) -> None:
    with pytest.raises(KeyStoreError, match="is no URL: write it as https://HOST:PORT") as told:
        new_service(endpoint)
    assert f"'{endpoint}'".rstrip("/'") in str(told.value)


@pytest.mark.parametrize(
    "endpoint", [f"https://kes:{SECRET[:-1]}@host", f"https://{SECRET[:-1]}@host", f"a:{SECRET}@b"]
)
def test_a_password_in_an_endpoint_is_refused_and_not_shown(new_service: Open, endpoint: str) -> None:
    with pytest.raises(KeyStoreError, match="the endpoint is no URL") as told:
        new_service(endpoint)
    assert SECRET[:-1] not in str(told.value)


@pytest.mark.parametrize("secured", [False, True])
def test_an_endpoint_may_be_an_ipv6_address(new_service: Open, pair: Pair, ca: str, secured: bool) -> None:
    requests: list[bytes] = []

    def script(connection: socket.socket) -> None:
        requests.append(read_request(connection))
        connection.sendall(OK)

    with listening(tls(pair, script) if secured else script, host="::1") as port:
        service = new_service(f"http{'s' * secured}://[::1]:{port}/base", ca=ca if secured else None)
        assert service.call("GET", "/x").body == b"ok"
    assert requests[0].startswith(b"GET /base/x HTTP/1.1\r\n")
    assert b"Host: [::1]:%d\r\n" % port in requests[0]


# --- whom to trust ---


@pytest.fixture(scope="module")
def chain() -> tuple[Pair, Pair, Pair]:
    """An authority, one below it, and a server's certificate of that one."""
    root = make("p256", name="root", ca=True)
    middle = make("p256", name="middle", ca=True, issuer=root)
    return root, middle, make("p256", issuer=middle, sans=["127.0.0.1"], eku=["server"])


def test_any_authority_of_the_chain_may_be_trusted(
    new_service: Open, chain: tuple[Pair, Pair, Pair], tmp_path: Path
) -> None:
    root, middle, leaf = chain
    folder = tmp_path / "authorities"
    folder.mkdir()
    (folder / "readme").write_text("no certificate")
    (folder / "other.pem").write_bytes(make("p256", ca=True).cert_pem)
    with listening(tls(leaf, answer_with(OK), chain=[middle])) as port:
        for trusted in (root, middle, leaf):
            path, _ = trusted.write(tmp_path, "trusted")
            assert new_service(at(port), ca=str(path), only_ca=True).call("GET", "/").body == b"ok"
            (folder / "trusted.pem").write_bytes(trusted.cert_pem)
            assert new_service(at(port), ca=str(folder), only_ca=True).call("GET", "/").body == b"ok"
        with pytest.raises(KeyStoreUnreachable, match=r"is not trusted .*: set 'store\.ca' to the authority"):
            new_service(at(port), ca_setting="store.ca").call("GET", "/")


def test_the_authorities_of_the_system_are_trusted_unless_only_others_are(
    new_service: Open, chain: tuple[Pair, Pair, Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, middle, leaf = chain
    system, _ = root.write(tmp_path, "system")
    other, _ = make("p256", ca=True).write(tmp_path, "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    with listening(tls(leaf, answer_with(OK), chain=[middle])) as port:
        assert new_service(at(port)).call("GET", "/").body == b"ok"
        assert new_service(at(port), ca=str(other)).call("GET", "/").body == b"ok"
        assert new_service(at(port), only_ca=True).call("GET", "/").body == b"ok"
        with pytest.raises(KeyStoreUnreachable, match="not trusted"):
            new_service(at(port), ca=str(other), only_ca=True).call("GET", "/")


@pytest.mark.parametrize(
    ("sans", "days", "words"),
    [
        (
            ["other.example"],
            (-1, 9),
            r"valid for '127.0.0.1'\.\): write the endpoint as its certificate names the host",
        ),
        ([], (-1, 9), "write the endpoint as its certificate names the host"),
        (["127.0.0.1"], (-9, -1), r"has expired\): renew it there, or set the clock of this machine"),
        (["127.0.0.1"], (1, 9), r"not yet valid\): renew it there, or set the clock of this machine"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told(
    new_service: Open, tmp_path: Path, sans: list[str], days: tuple[float, float], words: str
) -> None:
    pair = make("p256", sans=sans, days=days)
    path, _ = pair.write(tmp_path)
    requests: list[bytes] = []
    with (
        listening(tls(pair, lambda connection: requests.append(read_request(connection)))) as port,
        pytest.raises(KeyStoreUnreachable, match=f"its certificate is not trusted .*{words}"),
    ):
        new_service(at(port), ca=str(path)).call("GET", "/", headers={"X-Token": SECRET})
    assert requests == []


def test_who_speaks_no_tls_is_told(new_service: Open, peer: Service) -> None:
    with pytest.raises(KeyStoreUnreachable, match=r"the TLS handshake failed \(\w+\): does it speak TLS\?"):
        new_service(at(peer.port)).call("GET", "/")


def test_older_tls_is_not_spoken(new_service: Open, pair: Pair, ca: str) -> None:
    with listening(tls(pair, answer_with(OK), version=ssl.TLSVersion.TLSv1_2)) as port:
        assert new_service(at(port), ca=ca).call("GET", "/").body == b"ok"
        service = new_service(at(port), ca=ca, minimum_version=ssl.TLSVersion.TLSv1_3)
        with pytest.raises(KeyStoreUnreachable, match=r"the TLS handshake failed \(.*VERSION"):
            service.call("GET", "/")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be used: No such file or directory"),
        (b"", "holds no certificate in PEM form"),
        (b"hello", "holds no certificate in PEM form"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no certificate in PEM form"),
        (b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "cannot be used"),
    ],
)
def test_authorities_that_cannot_be_used_are_told(
    new_service: Open, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_bytes(content)
    for only_ca in (False, True):
        with pytest.raises(KeyStoreError, match=rf"tls\.ca '{path}' {words}"):
            new_service("https://127.0.0.1:1", ca=str(path), only_ca=only_ca)


# --- what the client shows ---


def test_a_client_may_show_a_certificate(new_service: Open, pair: Pair, ca: str, tmp_path: Path) -> None:
    client = make("p256", name="kes", eku=["client"])
    cert, key = client.write(tmp_path, "client")
    with listening(tls(pair, answer_with(OK), client_ca=client)) as port:
        assert new_service(at(port), ca=ca, certificate=(str(cert), str(key))).call("GET", "/").body == b"ok"
        with pytest.raises(KeyStoreUnreachable, match=r"handshake failed \(.*CERTIFICATE_REQUIRED|without an answer"):
            new_service(at(port), ca=ca).call("GET", "/")


def tell_name(connection: socket.socket) -> None:
    """Answer, over a kept connection, with the common name of the client's certificate."""
    assert isinstance(connection, ssl.SSLSocket)
    shown = connection.getpeercert() or {}
    name = str(shown["subject"][0][0][1]).encode()
    while read_request(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(name), name))


def test_certificates_that_are_renewed_on_disk_are_used(
    new_service: Open, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "RENEWAL_SECONDS", 0)
    authority, server = make("p256", ca=True), make("p256", sans=["127.0.0.1"], eku=["server"])
    old, new = (make("p256", name=name, issuer=authority, eku=["client"]) for name in ("old", "new"))
    ca = tmp_path / "ca"
    ca.mkdir()
    (ca / "first.crt").write_bytes(pair.cert_pem)
    cert, key = old.write(tmp_path, "client")
    with (
        listening(tls(pair, tell_name, client_ca=authority)) as port,
        listening(tls(server, tell_name, client_ca=authority)) as other_port,
    ):
        files: dict[str, Any] = {"ca": str(ca), "certificate": (str(cert), str(key))}
        ours, others = new_service(at(port), **files), new_service(at(other_port), **files)
        assert ours.call("GET", "/").body == b"old"
        cert.write_bytes(new.cert_pem)  # half of a renewal
        assert ours.call("GET", "/").body == b"old"
        with pytest.raises(KeyStoreUnreachable, match=r"not trusted .*it has changed on disk, but .*cannot be used"):
            others.call("GET", "/")
        new.write(tmp_path, "client")
        assert ours.call("GET", "/").body == b"new"
        (ca / "second.crt").write_bytes(server.cert_pem)
        assert others.call("GET", "/").body == b"new"
        (ca / "first.crt").unlink()  # no longer to be trusted
        with pytest.raises(KeyStoreUnreachable, match="not trusted"):
            ours.call("GET", "/")


@pytest.mark.parametrize("how", ["a folder that may not be read", "a link to nowhere"])
def test_files_that_cannot_be_looked_at_any_more_leave_the_old_ones_in_force(
    new_service: Open, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(http, "RENEWAL_SECONDS", 0)
    ca = tmp_path / "ca"
    ca.mkdir()
    (ca / "first.crt").write_bytes(pair.cert_pem)
    other = make("p256", name="another", sans=["127.0.0.1"])

    def may_not_be_read(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied")

    with Service(pair) as peer, Service(other) as other_peer, pytest.MonkeyPatch.context() as meanwhile:
        service, others = new_service(at(peer.port), ca=str(ca)), new_service(at(other_peer.port), ca=str(ca))
        if how == "a link to nowhere":
            (ca / "first.crt").unlink()
            (ca / "first.crt").symlink_to("/nowhere/first.crt")
        else:
            meanwhile.setattr(Path, "iterdir", may_not_be_read)
        assert service.call("GET", "/").status == 200
        with pytest.raises(KeyStoreUnreachable, match=r"not trusted .*it has changed on disk, but .*tls\.ca"):
            others.call("GET", "/")
        meanwhile.undo()
        (ca / "first.crt").unlink()
        (ca / "first.crt").write_bytes(pair.cert_pem)
        (ca / "second.crt").write_bytes(other.cert_pem)
        assert service.call("GET", "/").status == 200
        assert others.call("GET", "/").status == 200


def test_files_that_change_while_they_are_first_read_are_read_again(
    new_service: Open, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "RENEWAL_SECONDS", 0)
    ca = tmp_path / "ca.crt"
    ca.write_bytes(make("p256", name="old").cert_pem)
    certificates = roots.certificates

    def read_and_renew(path: Path) -> Iterator[bytes]:
        yield from certificates(path)
        if path == ca:
            ca.write_bytes(pair.cert_pem)

    with Service(pair) as peer:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(roots, "certificates", read_and_renew)
            service = new_service(at(peer.port), ca=str(ca))
        assert service.call("GET", "/").status == 200


def test_a_certificate_that_cannot_be_shown_is_told(new_service: Open, tmp_path: Path) -> None:
    client = make("p256", name="kes")
    cert, key = map(str, client.write(tmp_path, "client"))
    _, other = make("p256").write(tmp_path, "other")
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        client.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    )
    for files, words in (
        ((cert, str(locked)), "the private key is encrypted, which is not supported here"),
        ((cert, str(other)), "(?i:mismatch)"),
        ((cert, "/nowhere/a.key"), "No such file or directory"),
        (("/nowhere/a.crt", key), "No such file or directory"),
        ((key, cert), "."),
    ):
        with pytest.raises(KeyStoreError, match=rf"tls\.cert '{files[0]}' and tls\.key '{files[1]}' cannot .*{words}"):
            new_service("https://127.0.0.1:1", certificate=files)


# --- proxies ---


def test_https_goes_through_the_proxy_of_the_environment(
    new_service: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make("p256", sans=["store.example"])
    ca, _ = pair.write(tmp_path)
    with Service(pair) as peer, ConnectProxy({"store.example": peer.port}) as proxy:
        address = proxy.endpoint.removeprefix("http://")
        for written, login in (
            (proxy.endpoint, None),
            (address, None),
            (f"http://kes:p%40ss:w%C3%B6rd@{address}/", "kes:p@ss:wörd"),
        ):
            monkeypatch.setenv("HTTPS_PROXY", written)
            service = new_service("https://store.example/base", ca=str(ca))
            assert service.call("GET", "/x").status == 200
            assert proxy.logins.pop() == (login and f"Basic {b64encode(login.encode()).decode()}")
        assert {request.target for request in peer.requests} == {"/base/x"}
        assert "Proxy-Authorization" not in peer.requests[-1].headers
        with pytest.raises(KeyStoreUnreachable, match=r"the proxy does not let it .*403 Forbidden") as told:
            new_service("https://other.example").call("GET", "/")
        assert f"{NAME} at https://other.example (through the proxy {address}): " in str(told.value)


def test_http_is_told_the_proxy_as_a_whole_url(
    new_service: Open, peer: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://kes:pw@127.0.0.1:{peer.port}")
    assert new_service("http://store.example:7003/base").call("GET", "/x?y=z").status == 200
    (request,) = peer.requests
    assert request.target == "http://store.example:7003/base/x?y=z"
    assert request.headers["Host"] == "store.example:7003"
    assert request.headers["Proxy-Authorization"] == f"Basic {b64encode(b'kes:pw').decode()}"


@pytest.mark.parametrize(
    ("endpoint", "exempt"),
    [
        ("https://localhost:9", ""),
        ("https://127.0.0.9:9", ""),
        ("https://[::1]:9", ""),
        ("https://store.example", "other.example, store.example"),
        ("https://store.example", ".example"),
        ("https://store.example", "EXAMPLE"),
        ("https://store.example", "store.example:443"),
        ("https://store.example:8443", "store.example:8443"),
        ("https://10.1.2.3", "10.0.0.0/8"),
        ("https://10.1.2.3", "10.1.2.3"),
        ("https://[fd00::7]", "10.0.0.0/8,fd00::/8"),
        ("https://[fd00::7]", "[fd00::7]"),
        ("https://store.example", "*"),
    ],
)
def test_what_is_exempt_is_called_directly(
    new_service: Open, monkeypatch: pytest.MonkeyPatch, endpoint: str, exempt: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", exempt)
    assert new_service(endpoint)._pool.proxy is None


@pytest.mark.parametrize(
    ("endpoint", "exempt"),
    [
        ("https://store.example", ""),
        ("https://store.example", "ore.example,store,store.example:80"),
        ("https://10.1.2.3", "10.2.0.0/16,fd00::/8,nonsense/8"),
        ("https://localhost.example", ""),
    ],
)
def test_what_is_not_exempt_goes_through_the_proxy(
    new_service: Open, monkeypatch: pytest.MonkeyPatch, endpoint: str, exempt: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", exempt)
    with pytest.raises(KeyStoreUnreachable, match="does not let it through: Connection refused"):
        new_service(endpoint).call("GET", "/")


@pytest.mark.parametrize("proxy", [f"socks5://kes:{SECRET}@127.0.0.1:1", "http://[", "http://a b", "http://host:x"])
def test_a_proxy_that_cannot_be_used_is_told(new_service: Open, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(KeyStoreError, match="HTTPS_PROXY of the environment names no proxy that can be used") as told:
        new_service("https://store.example")
    assert SECRET not in str(told.value)


PROXIES: dict[str, tuple[Script, str]] = {
    "silent": (until_closed, "did not answer in time"),
    "endless": (trickle(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n"), "did not answer in time"),
    "closing": (answer_with(b""), "ended the connection without an answer"),
    "asking": (answer_with(b"HTTP/1.1 407 Log in\r\n\r\n"), "the proxy does not let it through: .* 407 Log in"),
}


@pytest.mark.parametrize("kind", PROXIES)
def test_a_proxy_that_is_in_the_way_is_told_in_time(
    new_service: Open, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(http, "CONNECT_SECONDS", 0.3)
    script, words = PROXIES[kind]
    with listening(script) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        begin = time.monotonic()
        with pytest.raises(KeyStoreUnreachable, match=rf"\(through the proxy 127\.0\.0\.1:{port}\).*{words}"):
            new_service("https://store.example").call("GET", "/")
        assert time.monotonic() - begin < 8
