import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import h2.events
import pytest

from keswick._native import Headers, Reply, Request
from support.transport import CLIENT, PLAIN, Endpoint, Http2, is_closed, read_response, wait_until

BOTH = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


class Recorder:
    """A handler that remembers what it was asked."""

    def __init__(self, reply: Reply = (200, PLAIN, b"hello")) -> None:
        self.requests: list[Request] = []
        self.reply = reply

    def __call__(self, request: Request) -> Reply:
        self.requests.append(request)
        return self.reply


@BOTH
def test_a_request_as_python_sees_it(http2: bool) -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        headers = [(b"X-One", b"1"), (b"x-two", b"a"), (b"X-Two", b"b"), (b"x-latin", b"caf\xe9")]
        reply = client.post("/a%2Fb/c?d=e%20f&g", content=b"body", headers=headers)
        assert (reply.status_code, reply.text, reply.headers["content-type"]) == (200, "hello", "text/plain")
        assert reply.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert reply.headers["content-length"] == "5"
        assert "date" in reply.headers
        assert "server" not in reply.headers
        [request] = handler.requests
        assert (request.method, request.path, request.query) == ("POST", "/a%2Fb/c", "d=e%20f&g")
        assert (request.body, request.truncated) == (b"body", False)
        assert (request.header("X-ONE"), request.header("x-latin"), request.header("x-none")) == ("1", "caf\xe9", None)
        assert request.headers("X-Two") == ["a", "b"]
        assert request.connection.peer == "127.0.0.1"
        assert not request.gone


@BOTH
def test_a_kept_connection_brings_the_requests_of_many(http2: bool) -> None:
    """A proxy keeps its connections, and each request is of another client: a header is one of its request."""
    connections: set[int] = set()

    def handler(request: Request) -> Reply:
        connection = request.connection
        connection.state = (connection.state or 0) + 1
        connections.add(id(connection))
        clients = request.headers("X-Tls-Client-Cert")
        return 200, PLAIN, f"{connection.state} {clients} {request.body.decode()}".encode()

    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        for number in range(1, 301):
            headers = {"X-Tls-Client-Cert": f"certificate-{number}"} if number % 3 else {}
            answer = client.post("/", headers=headers, content=f"body {number}")
            assert answer.text == f"{number} {list(headers.values())} body {number}"
        assert endpoint.server.stats()["connections_total"] == len(connections) == 1


@BOTH
def test_the_connection_is_one_object_with_a_slot(http2: bool) -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint:
        for _ in range(2):
            with endpoint.client(http2=http2) as client:
                client.get("/")
                client.get("/")
    first, second, third, _ = (request.connection for request in handler.requests)
    assert first is second
    assert first is not third
    assert first.state is None
    first.state = ["anything"]
    assert second.state == ["anything"]


@BOTH
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "LIST", "x-own"])
def test_every_method_reaches_the_handler(method: str, http2: bool) -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        client.request(method, "/")
    assert handler.requests[0].method.upper() == method.upper()


@BOTH
@pytest.mark.parametrize("reply", [(200, PLAIN, b"hello"), (404, Headers(), b"")])
def test_head_has_headers_and_no_body(reply: Reply, http2: bool) -> None:
    with Endpoint(Recorder(reply)) as endpoint, endpoint.client(http2=http2) as client:
        answer = client.head("/")
        assert (answer.status_code, answer.content) == (reply[0], b"")
        assert answer.headers["content-length"] == str(len(reply[2]))
        assert client.head("/").status_code == reply[0]


@BOTH
def test_an_empty_answer_has_a_length(http2: bool) -> None:
    with Endpoint(Recorder((200, Headers(), b""))) as endpoint, endpoint.client(http2=http2) as client:
        assert client.get("/").headers["content-length"] == "0"


@BOTH
def test_a_large_answer_arrives_whole(http2: bool) -> None:
    body = bytes(range(256)) * 20_000
    with Endpoint(Recorder((200, PLAIN, body))) as endpoint, endpoint.client(http2=http2) as client:
        assert client.get("/").content == body
        wait_until(lambda: endpoint.server.stats()["buffered"] == 0)


@BOTH
def test_headers_go_out_as_given(http2: bool) -> None:
    headers = Headers([("X-Latin", "caf\xe9"), ("Set-Cookie", "a"), ("Set-Cookie", "b")])
    with Endpoint(Recorder((200, headers, b""))) as endpoint, endpoint.client(http2=http2) as client:
        raw = client.get("/").headers.raw
        assert [(name.lower(), value) for name, value in raw if name.lower() in (b"x-latin", b"set-cookie")] == [
            (b"x-latin", b"caf\xe9"),
            (b"set-cookie", b"a"),
            (b"set-cookie", b"b"),
        ]


@pytest.mark.parametrize(
    "field",
    [("a b", "c"), ("", "c"), ("a", "b\r\nc"), ("a", "\u20ac"), ("Content-Length", "1"), ("Connection", "close")],
)
def test_headers_that_cannot_be_sent(field: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        Headers([field])


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/a/../b//c", "/a/../b//c", ""),
        ("/a?b?c", "/a", "b?c"),
        ("http://elsewhere/x?y", "/x", "y"),
        ("http://elsewhere", "/", ""),
        ("*", "*", ""),
    ],
)
def test_request_targets(target: str, path: str, query: str) -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.connect() as connected:
        connected.sendall(f"OPTIONS {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        assert read_response(connected)[0] == 200
    assert (handler.requests[0].path, handler.requests[0].query) == (path, query)


def test_connect_does_no_harm() -> None:
    with Endpoint(Recorder((405, PLAIN, b"no"))) as endpoint, endpoint.connect() as connected:
        connected.sendall(b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere\r\n\r\n")
        assert read_response(connected)[0] == 405


def test_malformed_requests_are_answered_400() -> None:
    with Endpoint() as endpoint:
        for request in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b"GET \x00 HTTP/1.1\r\n\r\n"):
            with endpoint.connect() as connected:
                connected.sendall(request)
                assert read_response(connected)[0] == 400
                assert is_closed(connected)


def test_a_malformed_body_is_answered_400() -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.connect() as connected:
        connected.sendall(b"POST / HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        status, headers, body = read_response(connected)
        assert (status, headers["connection"], body) == (400, "close", b"malformed")
    assert handler.requests == []
    assert endpoint.server.stats()["malformed_total"] == 1


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [("1.1", 0, 400), ("1.1", 1, 200), ("1.1", 2, 400), ("1.0", 0, 200), ("1.0", 2, 200)],
)
def test_http_1_1_has_one_host(version: str, hosts: int, status: int) -> None:
    """RFC 9112, section 3.2."""
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.connect() as connected:
        connected.sendall(f"GET / HTTP/{version}\r\n".encode() + b"Host: localhost\r\n" * hosts + b"\r\n")
        assert read_response(connected)[0] == status
        assert status == 200 or is_closed(connected)
    assert len(handler.requests) == (status == 200)


def test_keep_alive_and_pipelining() -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.connect() as connected:
        request = b"POST /%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody"
        connected.sendall(b"".join(request % number for number in range(50)))
        for _ in range(50):
            assert read_response(connected)[2] == b"hello"
    assert [request.path for request in handler.requests] == [f"/{number}" for number in range(50)]
    assert endpoint.server.stats()["connections_total"] == 1


def test_http_1_0_and_connection_close() -> None:
    with Endpoint() as endpoint:
        for request in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n"):
            with endpoint.connect() as connected:
                connected.sendall(request)
                assert read_response(connected)[2] == b"hello"
                assert is_closed(connected)


def test_expect_100_continue() -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.connect() as connected:
        connected.sendall(b"POST / HTTP/1.1\r\nHost: l\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        expected = b"HTTP/1.1 100 Continue\r\n\r\n"
        received = b""
        while len(received) < len(expected):
            received += connected.recv(len(expected) - len(received))
        assert received == expected
        connected.sendall(b"body")
        assert read_response(connected)[0] == 200
    assert handler.requests[0].body == b"body"


def test_multiplexing() -> None:
    """The answers of one connection come in the order in which they are given, not asked for."""
    waiting: list[Request] = []

    def handler(request: Request) -> None:
        waiting.append(request)

    with Endpoint(handler) as endpoint, endpoint.http2() as client:
        streams = [client.request(path=f"/{number}") for number in range(100)]
        wait_until(lambda: len(waiting) == 100)
        for request in reversed(waiting):
            assert request.respond(200, PLAIN, request.path.encode())
        ended = []
        for event in client.events():
            if isinstance(event, h2.events.StreamEnded):
                ended.append(event.stream_id)
                if len(ended) == 100:
                    break
        assert ended == streams[::-1]
        assert endpoint.server.stats()["connections_total"] == 1


@BOTH
@pytest.mark.parametrize("path", ["/", "/none"])
@pytest.mark.parametrize("size", [1_001, 100_000])
def test_a_body_past_its_limit_is_cut(size: int, path: str, http2: bool) -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        reply = client.post(path, content=b"x" * size)
        assert (reply.status_code, reply.text) == (200, "hello")
        assert reply.headers.get("connection") == (None if http2 else "close")
    [request] = handler.requests
    assert (len(request.body), request.truncated) == (1000 if path == "/" else 0, True)


@BOTH
def test_a_body_of_exactly_the_limit(http2: bool) -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        client.post("/", content=b"x" * 1000)
        client.post("/", content=iter([b"x" * 500, b"y" * 500]))
        client.post("/large", content=b"z" * 5_000_000)
        client.post("/few", content=b"xyz")
    assert [(len(request.body), request.truncated) for request in handler.requests] == [
        (1000, False),
        (1000, False),
        (5_000_000, False),
        (3, False),
    ]
    assert handler.requests[1].body == b"x" * 500 + b"y" * 500


@BOTH
def test_a_body_limit_is_one_of_the_decoded_path(http2: bool) -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        for path in ("/larg%65", "/%6caRge%2F", "/f%65w", "/%66%65%77", "/f%2565w", "/%C3%28"):
            client.post(path, content=b"x" * 2000)
    lengths = [(request.path, len(request.body)) for request in handler.requests]
    assert lengths == [
        ("/larg%65", 2000),
        ("/%6caRge%2F", 1000),
        ("/f%65w", 3),
        ("/%66%65%77", 3),
        ("/f%2565w", 1000),
        ("/%C3%28", 1000),
    ]


def test_a_path_with_a_percent_sign_that_encodes_nothing() -> None:
    handler = Recorder()
    with Endpoint(handler) as endpoint, endpoint.connect() as connected:
        for path in (b"/%", b"/%6", b"/%zzz", b"/few%"):
            connected.sendall(b"POST %s HTTP/1.1\r\nHost: l\r\nContent-Length: 3\r\n\r\nabc" % path)
            assert read_response(connected)[0] == 200
    assert [request.body for request in handler.requests] == [b"abc"] * 4


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_read_to_its_end_reaches_the_handler(announced: bool) -> None:
    handler = Recorder()
    with Endpoint(handler, drained_bytes=100_000) as endpoint, endpoint.client() as client:
        for path, size in (("/", 101_000), ("/none", 100_000)):
            client.post(path, content=b"x" * size if announced else iter([b"x" * 1000] * (size // 1000)))
    assert [(len(request.body), request.truncated) for request in handler.requests] == [(1000, True), (0, True)]


@pytest.mark.parametrize("announced", [True, False])
def test_far_too_large_a_body_over_http1(announced: bool) -> None:
    size = 20_000_000
    handler = Recorder()
    with Endpoint(handler, drained_bytes=100_000) as endpoint, endpoint.connect() as connected:
        connected.sendall(b"POST /a%2Fb HTTP/1.1\r\nHost: l\r\n")
        if announced:
            # Nothing of the body is waited for.
            connected.sendall(b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % size)
        else:
            connected.sendall(b"Transfer-Encoding: chunked\r\n\r\n186a1\r\n" + b"x" * 100_001)
            connected.sendall(b"\r\n3e8\r\n" + b"x" * 1000)
        status, headers, body = read_response(connected)
        assert (status, body, headers["connection"]) == (413, b"too large", "close")
        assert is_closed(connected)
        assert endpoint.server.stats()["too_large_total"] == 1
        assert endpoint.server.take_own_answers() == [("127.0.0.1", "/a%2Fb", 413)]
    assert handler.requests == []


@pytest.mark.parametrize("announced", [True, False])
def test_far_too_large_a_body_over_http2(announced: bool) -> None:
    """The answer comes whole, and then RST_STREAM with NO_ERROR asks the client to stop sending."""
    handler = Recorder()
    with Endpoint(handler, drained_bytes=100_000) as endpoint, endpoint.http2() as client:
        headers = {"content-length": "20000000"} if announced else {}
        stream = client.request("POST", end=False, **headers)
        data = b""
        reset = None
        for event in client.events():
            match event:
                case h2.events.DataReceived():
                    data += event.data
                case h2.events.StreamReset():
                    reset = event.error_code
                    break
            while (window := client.h2.local_flow_control_window(stream)) > 0 and not data:
                client.h2.send_data(stream, b"x" * min(window, 16_384))
                client.flush()
        assert (data, reset) == (b"too large", 0)
        assert handler.requests == []
        # The connection is as good as before.
        client.request()
        assert client.until(h2.events.StreamEnded)


@pytest.mark.parametrize("option", ["--http1.1", "--http2"])
def test_curl(option: str, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"x" * 100_000)
    with Endpoint() as endpoint:
        cert, key = CLIENT.write(tmp_path)
        files: list[str | Path] = ["--cacert", endpoint.trusted, "--cert", cert, "--key", key]
        done = subprocess.run(
            ["curl", "-sS", option, *files, "--data-binary", f"@{tmp_path / 'body'}", endpoint.url, endpoint.url],
            capture_output=True,
            check=True,
        )
    assert done.stdout == b"hellohello"


@BOTH
def test_an_answer_that_comes_later(http2: bool) -> None:
    def handler(request: Request) -> None:
        def answer() -> None:
            results.append(request.respond(201, PLAIN, b"later"))
            results.append(request.respond(202, PLAIN, b"too late"))

        thread = threading.Thread(target=answer)
        threads.append(thread)
        thread.start()

    results: list[bool] = []
    threads: list[threading.Thread] = []
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        for _ in range(20):
            reply = client.get("/")
            assert (reply.status_code, reply.text) == (201, "later")
        for thread in threads:
            thread.join()
    assert results == [True, False] * 20


@BOTH
def test_an_answer_given_before_the_handler_returns(http2: bool) -> None:
    def handler(request: Request) -> Reply | None:
        assert request.respond(201, PLAIN, b"first")
        assert not request.respond(202, PLAIN, b"second")
        return None

    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        assert client.get("/").text == "first"


@BOTH
def test_a_request_dropped_without_an_answer(http2: bool) -> None:
    with Endpoint(lambda _request: None) as endpoint, endpoint.client(http2=http2) as client:
        reply = client.get("/")
        assert (reply.status_code, reply.text) == (500, "error")


@BOTH
@pytest.mark.parametrize(
    "reply", ["not a tuple", (200, PLAIN), (200, {}, b""), (200, PLAIN, "text"), (99, PLAIN, b""), (600, PLAIN, b"")]
)
def test_a_wrong_answer_of_the_handler(reply: object, http2: bool, unraisable: list[BaseException]) -> None:
    with Endpoint(lambda _request: reply) as endpoint, endpoint.client(http2=http2) as client:  # type: ignore[arg-type,return-value]
        assert client.get("/").text == "error"
    assert isinstance(unraisable[0], TypeError | ValueError)


@BOTH
def test_an_exception_of_the_handler(http2: bool, unraisable: list[BaseException]) -> None:
    def handler(request: Request) -> Reply:
        if request.path == "/bad":
            raise RuntimeError("on purpose")
        return 200, PLAIN, b"hello"

    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        assert client.get("/bad").text == "error"
        assert client.get("/good").text == "hello"
    assert [str(error) for error in unraisable] == ["on purpose"]


@BOTH
def test_a_client_that_goes_away(http2: bool) -> None:
    waiting: list[Request] = []
    with Endpoint(lambda request: waiting.append(request)) as endpoint:
        connected = endpoint.connect(alpn="h2" if http2 else "http/1.1")
        if http2:
            Http2(connected).request()
        else:
            connected.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: waiting)
        assert not waiting[0].gone
        connected.close()
        wait_until(lambda: waiting[0].gone)
        assert not waiting[0].respond(200, PLAIN, b"nobody")
        assert waiting[0].gone
        wait_until(lambda: endpoint.server.stats()["requests"] == 0)


def test_a_stream_that_the_client_resets() -> None:
    waiting: list[Request] = []
    with Endpoint(lambda request: waiting.append(request)) as endpoint, endpoint.http2() as client:
        stream = client.request()
        wait_until(lambda: waiting)
        client.h2.reset_stream(stream)
        client.flush()
        wait_until(lambda: waiting[0].gone)


def test_a_plain_listener() -> None:
    handler = Recorder()
    with Endpoint(handler, plain=True) as endpoint, endpoint.client() as client:
        assert client.get("/").text == "hello"
    assert handler.requests[0].connection.certificates == []


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """The exceptions that went to `sys.unraisablehook`."""
    seen: list[BaseException] = []
    hook: Callable[[object], None] = lambda info: seen.append(info.exc_value)  # type: ignore[attr-defined]  # noqa: E731
    monkeypatch.setattr("sys.unraisablehook", hook)
    return seen
