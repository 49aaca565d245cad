import gc
import threading
import time
from collections.abc import Iterator

import h2.events
import httpx
import pytest

from keswick._native import Reply, Request, Stream
from support.transport import PLAIN, Endpoint, wait_until

BOTH = pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])


class Subscribers:
    """A handler that opens a stream for every request."""

    def __init__(self, capacity: int = 256) -> None:
        self.streams: list[Stream] = []
        self.capacity = capacity

    def __call__(self, request: Request) -> Reply | None:
        if request.path == "/now":
            return 200, PLAIN, b"now"
        self.streams.append(request.stream(200, PLAIN, capacity=self.capacity))
        return None


@BOTH
def test_pieces_arrive_as_they_are_sent(http2: bool) -> None:
    handler = Subscribers()
    with (
        Endpoint(handler) as endpoint,
        endpoint.client(http2=http2) as client,
        client.stream("GET", "/") as reply,
    ):
        # Status and headers have come before any piece.
        assert (reply.status_code, reply.headers["content-type"]) == (200, "text/plain")
        assert "content-length" not in reply.headers
        pieces = reply.iter_raw()
        for number in range(10):
            assert handler.streams[0].send(b"piece %d" % number)
            assert next(pieces) == b"piece %d" % number
        handler.streams[0].close()
        assert list(pieces) == []
        assert handler.streams[0].closed
        assert not handler.streams[0].send(b"more")


@BOTH
def test_many_subscribers(http2: bool) -> None:
    handler = Subscribers()
    received: list[bytes] = []

    def subscribe(endpoint: Endpoint) -> None:
        with endpoint.client(http2=http2) as client:
            received.append(client.get("/").content)

    with Endpoint(handler) as endpoint:
        threads = [threading.Thread(target=subscribe, args=(endpoint,)) for _ in range(20)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(handler.streams) == 20)
        for number in range(100):
            for stream in handler.streams:
                assert stream.send(b"%d\n" % number)
        for stream in handler.streams:
            stream.close()
        for thread in threads:
            thread.join()
    assert received == [b"".join(b"%d\n" % number for number in range(100))] * 20


@BOTH
def test_a_slow_reader_holds_a_bounded_number_of_pieces(http2: bool) -> None:
    handler = Subscribers(capacity=8)
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        with client.stream("GET", "/"):
            [stream] = handler.streams
            piece = b"x" * 100_000
            wait_until(lambda: not stream.send(piece))
            # What waits is the queue, and what has been handed to the connection.
            assert endpoint.server.stats()["buffered"] < 3_000_000
            assert not stream.closed
            client.close()
        wait_until(lambda: stream.closed)
        wait_until(lambda: endpoint.server.stats()["buffered"] == 0)


@BOTH
def test_pieces_count_in_the_budget(http2: bool) -> None:
    handler = Subscribers(capacity=1_000_000)
    with (
        Endpoint(handler, buffered_bytes=10_000_000) as endpoint,
        endpoint.client(http2=http2) as client,
        client.stream("GET", "/"),
    ):
        [stream] = handler.streams
        wait_until(lambda: not stream.send(b"x" * 100_000))
        assert endpoint.server.stats()["buffered"] <= 10_000_000
        assert not stream.closed


@BOTH
def test_a_slow_reader_is_cut(http2: bool) -> None:
    handler = Subscribers()
    with (
        Endpoint(handler, write_seconds=0.2) as endpoint,
        endpoint.client(http2=http2) as client,
        client.stream("GET", "/"),
    ):
        [stream] = handler.streams
        while stream.send(b"x" * 100_000):
            pass
        wait_until(lambda: stream.closed)
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)


@BOTH
def test_a_quiet_stream_is_not_cut(http2: bool) -> None:
    handler = Subscribers()
    with (
        Endpoint(handler, write_seconds=0.1, idle_seconds=0.1, header_seconds=0.1, body_seconds=0.1) as endpoint,
        endpoint.client(http2=http2) as client,
        client.stream("GET", "/") as reply,
    ):
        [stream] = handler.streams
        time.sleep(0.6)
        assert stream.send(b"still there")
        assert next(reply.iter_raw()) == b"still there"


@BOTH
def test_a_client_that_goes_is_noticed(http2: bool) -> None:
    handler = Subscribers()
    called: list[str] = []
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        with client.stream("GET", "/"):
            [stream] = handler.streams
            stream.on_close(lambda: called.append("first"))
            stream.on_close(lambda: called.append("second"))
            assert called == []
            client.close()
        wait_until(lambda: stream.closed)
        wait_until(lambda: called == ["first", "second"])
        stream.on_close(lambda: called.append("at once"))
        assert called.pop() == "at once"
        stream.close()
        assert called == ["first", "second"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_callback_may_fail_or_call_back(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = Subscribers()
    unraisable: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", lambda info: unraisable.append(info.exc_value))
    closed: list[bool] = []

    def fail() -> None:
        raise RuntimeError("on purpose")

    with Endpoint(handler) as endpoint, endpoint.client() as client:
        with client.stream("GET", "/"):
            [stream] = handler.streams
            stream.on_close(fail)
            stream.on_close(lambda: closed.append(stream.closed or stream.send(b"x")))
        wait_until(lambda: closed == [True])
    assert [str(error) for error in unraisable] == ["on purpose"]


@BOTH
def test_dropping_a_stream_ends_it(http2: bool) -> None:
    handler = Subscribers()
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client, client.stream("GET", "/") as reply:
        assert handler.streams[0].send(b"last words")
        handler.streams.clear()
        gc.collect()
        assert b"".join(reply.iter_raw()) == b"last words"


@BOTH
def test_head_of_a_stream(http2: bool) -> None:
    handler = Subscribers()
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client:
        assert client.head("/").content == b""
        assert handler.streams[0].closed
        assert client.get("/now").text == "now"


def test_a_second_answer_is_a_closed_stream() -> None:
    closed: list[bool] = []

    def handler(request: Request) -> None:
        request.respond(200, PLAIN, b"first")
        closed.append(request.stream(200, PLAIN).closed)

    with Endpoint(handler) as endpoint, endpoint.client() as client:
        assert client.get("/").text == "first"
    assert closed == [True]


def pieces(reply: httpx.Response) -> Iterator[bytes]:
    try:
        yield from reply.iter_raw()
    except httpx.RemoteProtocolError:
        return


def test_draining_ends_streams_cleanly_over_http1() -> None:
    handler = Subscribers()
    with Endpoint(handler) as endpoint, endpoint.client() as client, client.stream("GET", "/") as reply:
        handler.streams[0].send(b"sent before")
        endpoint.server.drain()
        assert b"".join(reply.iter_raw()) == b"sent before"
        assert handler.streams[0].closed
        assert endpoint.server.wait_drained(20)


def test_draining_ends_streams_cleanly_over_http2() -> None:
    handler = Subscribers()
    with Endpoint(handler) as endpoint, endpoint.http2() as client:
        client.request()
        wait_until(lambda: handler.streams)
        handler.streams[0].send(b"sent before")
        endpoint.server.drain()
        events = list(client.events())
        assert [event.data for event in events if isinstance(event, h2.events.DataReceived)] == [b"sent before", b""]
        assert any(isinstance(event, h2.events.StreamEnded) for event in events)
        assert handler.streams[0].closed
        assert endpoint.server.wait_drained(20)


@BOTH
def test_closing_the_server_closes_streams(http2: bool) -> None:
    handler = Subscribers()
    called: list[bool] = []
    with Endpoint(handler) as endpoint, endpoint.client(http2=http2) as client, client.stream("GET", "/") as reply:
        [stream] = handler.streams
        stream.on_close(lambda: called.append(True))
        endpoint.server.close()
        assert stream.closed
        assert called == [True]
        assert list(pieces(reply)) == []


def test_a_stream_does_not_hold_up_other_requests_of_its_connection() -> None:
    handler = Subscribers(capacity=100_000)
    with Endpoint(handler) as endpoint, endpoint.http2() as client:
        client.request()
        client.until(h2.events.ResponseReceived)
        for _ in range(1_000):
            handler.streams[0].send(b"x" * 1_000)
        now = client.request(path="/now")
        for event in client.events():
            if isinstance(event, h2.events.DataReceived) and event.stream_id == now:
                assert event.data == b"now"
                break
