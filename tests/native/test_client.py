"""Calls of the native client: connections, time, signals, forks, and answers that are none."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from keswick._native import Answer, CallFailed, ClientTls, HttpClient, Reader, Reply, Request, Stream
from support.sockets import Script, answer_with, listening, read_request, tls, until_closed
from support.transport import CLIENT, PLAIN, SERVER, Endpoint, Handler, hello, server_tls, wait_until

TLS = ClientTls(roots=[SERVER.cert_der], certificates=[CLIENT.cert_der], key=CLIENT.key_der)
OK: Answer = (200, "text/plain", b"hello")
BOTH = pytest.mark.parametrize("http2", [True, False], ids=["http2", "http1"])
SOURCES = str(Path(__file__).parents[2] / "src")


class Outcome:
    """What `done` is called with, to wait for."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._called = threading.Event()

    def __call__(self, outcome: object) -> None:
        self.calls.append(outcome)
        self._called.set()

    def wait(self) -> Any:
        assert self._called.wait(20)
        return self.calls[0]


class Gate:
    """A handler that answers when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Request] = []

    def __call__(self, request: Request) -> None:
        self.waiting.append(request)

    def open(self) -> None:
        while self.waiting:
            self.waiting.pop().respond(200, PLAIN, b"hello")


@contextlib.contextmanager
def serving(handler: Handler = hello, **limits: Any) -> Iterator[tuple[Endpoint, int]]:
    with Endpoint(handler, **limits) as endpoint:
        yield endpoint, endpoint.server.address[1]


def failure_of(script: Script, *, timeout: float | None = 20, alpn: tuple[str, ...] = (), **options: Any) -> Any:
    """`args` of the failure of a call to a server of bare sockets."""
    with listening(tls(SERVER, script, alpn=alpn)) as port, pytest.raises(CallFailed) as caught:
        HttpClient(TLS, **options).call("localhost", port, "GET", "/", timeout=timeout)
    assert len(caught.value.args) == 3
    return caught.value.args


# --- requests and answers ---


@BOTH
def test_a_request_arrives_as_it_is(http2: bool) -> None:
    seen: list[tuple[object, ...]] = []

    def handler(request: Request) -> Reply:
        headers = [request.header(name) for name in ("content-type", "accept", "user-agent", "content-length")]
        seen.append((request.method, request.path, request.query, request.body, *headers))
        return 404, PLAIN, b"\0binary"

    with serving(handler) as (_, port):
        client = HttpClient(TLS, http2=http2, user_agent="kes/1")
        assert client.call("127.0.0.1", port, "GET", "/a%20b*?x=%2F", timeout=20) == (404, "text/plain", b"\0binary")
        client.call("localhost", port, "POST", "/", b'{"a":1}', accept="application/json", timeout=None)
        client.call("localhost", port, "PUT", "/", b"", timeout=None)
    assert seen == [
        ("GET", "/a%20b*", "x=%2F", b"", None, None, "kes/1", None),
        ("POST", "/", "", b'{"a":1}', "application/json", "application/json", "kes/1", "7"),
        ("PUT", "/", "", b"", "application/json", None, "kes/1", "0"),
    ]


def test_the_host_is_named_with_its_port() -> None:
    hosts: list[str] = []

    def script(connection: Any) -> None:
        request = read_request(connection).decode()
        hosts.extend(line for line in request.split("\r\n") if line.lower().startswith("host:"))
        connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")

    trusting = HttpClient(ClientTls(roots=None))
    for host in ("127.0.0.1", "::1"):
        with listening(tls(SERVER, script), host=host) as port:
            assert trusting.call(host, port, "GET", "/", timeout=20) == (204, "", b"")
            name = f"[{host}]" if ":" in host else host
            assert hosts.pop() == f"host: {name}:{port}"


@BOTH
def test_a_large_answer_and_a_large_request(http2: bool) -> None:
    with serving(lambda request: (200, PLAIN, request.body)) as (_, port):
        body = os.urandom(4_000_000)
        assert HttpClient(TLS, http2=http2).call("localhost", port, "POST", "/large", body, timeout=20)[2] == body


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"method": "G T"}, "is not a method"),
        ({"path": "v1"}, "no URL"),
        ({"path": "/a b"}, "no URL"),
        ({"path": "/a#b"}, "no URL"),
        ({"host": "a/b"}, "no URL"),
        ({"host": "b@a"}, "no URL"),
        ({"host": ""}, "no URL"),
        ({"accept": "a\nb"}, "accept has characters"),
        ({"timeout": -1}, "timeout is a number of seconds"),
        ({"timeout": float("nan")}, "timeout is a number of seconds"),
    ],
)
def test_what_cannot_be_called_is_a_value_error(arguments: dict[str, Any], complaint: str) -> None:
    usual: dict[str, Any] = {"host": "localhost", "port": 1, "method": "GET", "path": "/", "timeout": 1.0}
    with pytest.raises(ValueError, match=complaint):
        HttpClient(TLS).call(**usual | arguments)


def test_only_the_server_side_of_http2_is_used_when_it_is_offered() -> None:
    with listening(tls(SERVER, answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))) as port:
        assert HttpClient(TLS, http2=True).call("localhost", port, "GET", "/", timeout=20) == (200, "", b"ok")


# --- connections ---


@BOTH
def test_calls_one_after_the_other_use_one_connection(http2: bool) -> None:
    with serving() as (endpoint, port):
        client = HttpClient(TLS, http2=http2)
        for _ in range(20):
            assert client.call("localhost", port, "GET", "/", timeout=20) == OK
        assert endpoint.server.stats()["connections_total"] == 1


@BOTH
def test_many_calls_at_a_time(http2: bool) -> None:
    gate = Gate()
    with serving(gate) as (endpoint, port):
        client = HttpClient(TLS, http2=http2)
        for _ in range(2):
            outcomes = [Outcome() for _ in range(200)]
            for outcome in outcomes:
                client.begin(outcome, "localhost", port, "GET", "/", timeout=20)
            wait_until(lambda: len(gate.waiting) == 200)
            gate.open()
            assert [outcome.wait() for outcome in outcomes] == [OK] * 200
            assert endpoint.server.stats()["connections_total"] == (1 if http2 else 200)


@BOTH
def test_calls_of_many_threads(http2: bool) -> None:
    with serving() as (_, port):
        client = HttpClient(TLS, http2=http2)
        answers: list[Answer] = []

        def calls() -> None:
            answers.extend(client.call("localhost", port, "GET", "/", timeout=20) for _ in range(20))

        threads = [threading.Thread(target=calls) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [OK] * 200


@BOTH
def test_a_kept_connection_that_the_server_has_ended_is_replaced(http2: bool) -> None:
    with serving(idle_seconds=0.05) as (endpoint, port):
        client = HttpClient(TLS, http2=http2)
        for count in range(1, 6):
            assert client.call("localhost", port, "GET", "/", timeout=20) == OK
            assert endpoint.server.stats()["connections_total"] == count
            wait_until(lambda: endpoint.server.stats()["connections"] == 0)


def test_no_call_is_lost_when_the_server_ends_connections_in_order() -> None:
    with serving() as (endpoint, port):
        client = HttpClient(TLS)
        outcomes: list[Answer | CallFailed] = []
        draining = True

        def again(outcome: Answer | CallFailed) -> None:
            outcomes.append(outcome)
            if draining:
                client.begin(again, "localhost", port, "GET", "/", timeout=20)

        def until(count: int) -> None:
            wait_until(lambda: len(outcomes) > count)

        for _ in range(20):
            client.begin(again, "localhost", port, "GET", "/", timeout=20)
        for _ in range(10):
            until(len(outcomes) + 100)
            endpoint.server.set_tls(server_tls(), drain=True)
        draining = False
        wait_until(lambda: endpoint.server.stats()["requests"] == 0)
        assert outcomes == [OK] * len(outcomes)


@BOTH
def test_idle_connections_end(http2: bool) -> None:
    with serving() as (endpoint, port):
        client = HttpClient(TLS, http2=http2, idle_timeout=0.1)
        assert client.call("localhost", port, "GET", "/", timeout=20) == OK
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)
        assert client.call("localhost", port, "GET", "/", timeout=20) == OK


@BOTH
def test_close_ends_idle_connections_now_and_others_later(http2: bool) -> None:
    gate = Gate()
    with serving(gate) as (endpoint, port):
        client = HttpClient(TLS, http2=http2)
        outcome = Outcome()
        client.begin(outcome, "localhost", port, "GET", "/", timeout=20)
        wait_until(lambda: gate.waiting)
        client.close()
        gate.open()
        assert outcome.wait() == OK
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)
        client.begin(outcome, "localhost", port, "GET", "/", timeout=20)
        wait_until(lambda: gate.waiting)
        gate.open()
        wait_until(lambda: len(outcome.calls) == 2)
        assert endpoint.server.stats()["connections_total"] == 2
        client.close()
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)


@BOTH
def test_a_client_that_goes_takes_its_connections_with_it(http2: bool) -> None:
    with serving() as (endpoint, port):
        client = HttpClient(TLS, http2=http2)
        client.call("localhost", port, "GET", "/", timeout=20)
        del client
        gc.collect()
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)


def test_one_connect_failure_is_told_to_all_who_wait() -> None:
    with listening(until_closed) as port:
        client = HttpClient(TLS, connect_timeout=0.5)
        outcomes = [Outcome() for _ in range(50)]
        for outcome in outcomes:
            client.begin(outcome, "localhost", port, "GET", "/", timeout=20)
        assert {outcome.wait().args for outcome in outcomes} == {("connect_timeout", "the TLS handshake", False)}


# --- failures ---


def test_nobody_is_there() -> None:
    with listening(until_closed) as port:
        pass
    for host in ("127.0.0.1", "localhost", "::1"):
        with pytest.raises(CallFailed) as caught:
            HttpClient(TLS).call(host, port, "GET", "/", timeout=20)
        assert caught.value.args == ("refused", "Connection refused", False)


def test_a_host_without_an_address() -> None:
    with pytest.raises(CallFailed) as caught:
        HttpClient(TLS).call("nowhere.invalid", 1, "GET", "/", timeout=20)
    kind, detail, sent = caught.value.args
    assert (kind, sent) == ("resolve", False)
    assert detail
    assert "os error" not in detail


def test_an_address_that_cannot_be_connected_to() -> None:
    with pytest.raises(CallFailed) as caught:
        HttpClient(TLS).call("255.255.255.255", 1, "GET", "/", timeout=20)
    kind, detail, sent = caught.value.args
    assert (kind, sent) == ("connect", False)
    assert detail
    assert "os error" not in detail


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (read_request, "closed"),
        (answer_with(b"HTTP/1.1 200 OK\r\nContent-Le"), "closed"),
        (answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), "closed"),
        (answer_with(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab"), "closed"),
        (answer_with(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"), "protocol"),
        (answer_with(b"hello\r\n\r\n"), "protocol"),
        (answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"), "protocol"),
        (answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"), "too_long"),
        (answer_with(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + bytes(1001)), "too_long"),
    ],
)
def test_answers_that_are_none(script: Script, kind: str) -> None:
    assert failure_of(script, max_reply=1000)[::2] == (kind, True)


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (lambda connection: connection.recv(10), "closed"),
        (answer_with(b"HTTP/1.1 200 OK\r\n\r\n"), "protocol"),
    ],
)
def test_servers_that_promise_http2_and_break_it(script: Script, kind: str) -> None:
    assert failure_of(script, alpn=("h2",))[0] == kind


def http2_answer(*frames: Callable[[int], Frame], headers: Sequence[tuple[str, str]] = ((":status", "200"),)) -> Script:
    """Begins an answer to the first request and goes on with these frames, each made for its stream."""

    def script(connection: Any) -> None:
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        server.initiate_connection()
        connection.sendall(server.data_to_send())
        while True:
            for event in server.receive_data(connection.recv(65536)):
                if isinstance(event, h2.events.RequestReceived):
                    server.send_headers(event.stream_id, list(headers))
                    made = b"".join(frame(event.stream_id).serialize() for frame in frames)
                    connection.sendall(server.data_to_send() + made)
                    until_closed(connection)
                    return
            connection.sendall(server.data_to_send())

    return script


def half(stream: int) -> Frame:
    return DataFrame(stream, data=b"half")


@pytest.mark.parametrize("code", [0, 7, 8], ids=["no error", "refused", "cancel"])
@pytest.mark.parametrize("way", ["reset", "goaway"])
def test_half_an_answer_over_http2_is_never_taken_for_whole(way: str, code: int) -> None:
    """Whatever the server says when it breaks off; and it cannot say any more that it did nothing."""

    def end(stream: int) -> Frame:
        return RstStreamFrame(stream, error_code=code) if way == "reset" else GoAwayFrame(error_code=code)

    assert failure_of(http2_answer(half, end), alpn=("h2",))[::2] == ("closed", True)


def test_half_a_stream_over_http2_does_not_end_in_order() -> None:
    script = http2_answer(half, lambda stream: RstStreamFrame(stream, error_code=0))
    with listening(tls(SERVER, script, alpn=["h2"])) as port:
        reader = HttpClient(TLS).open("localhost", port, "/", timeout=20)
        assert reader.read(timeout=20) == b"half"
        with pytest.raises(CallFailed) as caught:
            reader.read(timeout=20)
        assert caught.value.args == ("closed", "the answer broke off", True)


def test_a_whole_answer_over_http2_counts_however_the_stream_ends() -> None:
    script = http2_answer(
        half,
        lambda stream: RstStreamFrame(stream, error_code=0),
        headers=[(":status", "413"), ("content-length", "4")],
    )
    with listening(tls(SERVER, script, alpn=["h2"])) as port:
        assert HttpClient(TLS).call("localhost", port, "GET", "/", timeout=20) == (413, "", b"half")


@BOTH
def test_a_server_that_stops_reading_keeps_no_connection(http2: bool) -> None:
    """What is still to be sent to it is dropped, with the socket."""

    def script(connection: Any) -> None:
        if http2:
            settings = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: window})
            connection.sendall(settings.serialize() + WindowUpdateFrame(0, window_increment=window).serialize())
        ended.wait(60)

    def connected() -> int:
        sockets = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
        return sum(peer.endswith(f":{port:04X}") and state == "01" for _, _, peer, state, *_ in sockets)

    window, ended = 1 << 30, threading.Event()
    with listening(tls(SERVER, script, alpn=["h2"] if http2 else [])) as port:
        client = HttpClient(TLS, http2=http2)
        for _ in range(3):
            with pytest.raises(CallFailed) as caught:
                client.call("localhost", port, "POST", "/", bytes(20_000_000), timeout=0.2)
            assert caught.value.args == ("timeout", "", True)
        assert connected()
        wait_until(lambda: not connected())
        ended.set()


@BOTH
def test_an_answer_may_be_as_long_as_max_reply(http2: bool) -> None:
    with serving(lambda request: (200, PLAIN, bytes(1000))) as (_, port):
        assert HttpClient(TLS, http2=http2, max_reply=1000).call("localhost", port, "GET", "/", timeout=20)[2] == bytes(
            1000
        )
        with pytest.raises(CallFailed) as caught:
            HttpClient(TLS, http2=http2, max_reply=999).call("localhost", port, "GET", "/", timeout=20)
        assert caught.value.args == ("too_long", "the answer is longer than 999 bytes", True)


def test_an_early_answer_counts_even_if_the_server_reads_no_further() -> None:
    with listening(tls(SERVER, answer_with(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"))) as port:
        for _ in range(10):
            answer = HttpClient(TLS).call("localhost", port, "POST", "/", bytes(3_000_000), timeout=20)
            assert answer == (413, "", b"no")


@BOTH
def test_no_answer_in_time(http2: bool) -> None:
    gate = Gate()
    with serving(gate) as (endpoint, port):
        client = HttpClient(TLS, http2=http2)
        with pytest.raises(CallFailed) as caught:
            client.call("localhost", port, "GET", "/", timeout=0.1)
        assert caught.value.args == ("timeout", "", True)
        wait_until(lambda: gate.waiting[0].gone)
        wait_until(lambda: endpoint.server.stats()["connections"] == 0)  # it might be dead


def test_half_an_answer_in_time() -> None:
    def script(connection: Any) -> None:
        answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")(connection)
        until_closed(connection)

    assert failure_of(script, timeout=0.1) == ("timeout", "", True)


def test_a_request_on_a_kept_connection_that_breaks_may_have_been_sent() -> None:
    def script(connection: Any) -> None:
        answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")(connection)
        read_request(connection)

    with listening(tls(SERVER, script)) as port:
        client = HttpClient(TLS)
        client.call("localhost", port, "GET", "/", timeout=20)
        with pytest.raises(CallFailed) as caught:
            client.call("localhost", port, "GET", "/", timeout=20)
        assert caught.value.args[::2] == ("closed", True)


# --- callbacks and cancelling ---


@BOTH
def test_a_cancelled_call_is_cancelled_at_the_server_and_never_done(http2: bool) -> None:
    gate = Gate()
    with serving(gate) as (_, port):
        client = HttpClient(TLS, http2=http2)
        outcome = Outcome()
        pending = client.begin(outcome, "localhost", port, "GET", "/", timeout=20)
        wait_until(lambda: gate.waiting)
        pending.cancel()
        pending.cancel()
        wait_until(lambda: gate.waiting[0].gone)
        assert outcome.calls == []


def test_a_pending_call_that_nobody_holds_goes_on() -> None:
    gate = Gate()
    with serving(gate) as (_, port):
        outcome = Outcome()
        HttpClient(TLS).begin(outcome, "localhost", port, "GET", "/", timeout=20)
        gc.collect()
        wait_until(lambda: gate.waiting)
        gate.open()
        assert outcome.wait() == OK


def test_a_failure_goes_to_the_callback() -> None:
    outcome = Outcome()
    HttpClient(TLS).begin(outcome, "127.0.0.1", 1, "GET", "/", timeout=20)
    assert isinstance(outcome.wait(), CallFailed)
    assert outcome.wait().args == ("refused", "Connection refused", False)


def test_an_exception_in_a_callback_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Outcome()
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown(unraisable.exc_value))

    def fail(_: object) -> None:
        raise RuntimeError("of the callback")

    with serving() as (_, port):
        client = HttpClient(TLS)
        client.begin(fail, "localhost", port, "GET", "/", timeout=20)
        assert str(shown.wait()) == "of the callback"
        assert client.call("localhost", port, "GET", "/", timeout=20) == OK


def test_a_callback_may_begin_calls_but_not_wait_for_them() -> None:
    outcome, refusal = Outcome(), Outcome()
    with serving() as (_, port):
        client = HttpClient(TLS)

        def again(_: object) -> None:
            client.begin(outcome, "localhost", port, "GET", "/", timeout=20)
            try:
                client.call("localhost", port, "GET", "/", timeout=20)
            except RuntimeError as error:
                refusal(str(error))

        client.begin(again, "localhost", port, "GET", "/", timeout=20)
        assert outcome.wait() == OK
        assert "must not wait" in refusal.wait()


def test_an_event_loop_can_wait_for_calls() -> None:
    async def main(port: int) -> list[Answer | CallFailed]:
        client = HttpClient(TLS)
        loop = asyncio.get_running_loop()

        async def call() -> Answer | CallFailed:
            future: asyncio.Future[Answer | CallFailed] = loop.create_future()

            def done(outcome: Answer | CallFailed) -> None:
                loop.call_soon_threadsafe(future.set_result, outcome)

            client.begin(done, "localhost", port, "GET", "/", timeout=20)
            return await future

        return await asyncio.gather(*(call() for _ in range(50)))

    with serving() as (_, port):
        assert asyncio.run(main(port)) == [OK] * 50


# --- answers piece by piece ---


class Source:
    """A handler that answers with a stream."""

    def __init__(self) -> None:
        self.stream: Stream | None = None

    def __call__(self, request: Request) -> None:
        self.stream = request.stream(200, PLAIN)

    def send(self, data: bytes) -> None:
        assert self.stream is not None
        assert self.stream.send(data)

    def close(self) -> None:
        assert self.stream is not None
        self.stream.close()

    @property
    def closed(self) -> bool:
        return self.stream is not None and self.stream.closed


@contextlib.contextmanager
def reading(http2: bool) -> Iterator[tuple[Source, Reader, HttpClient, Endpoint]]:
    source = Source()
    with serving(source) as (endpoint, port):
        client = HttpClient(TLS, http2=http2)
        yield source, client.open("localhost", port, "/", timeout=20), client, endpoint


@BOTH
def test_an_answer_is_read_piece_by_piece(http2: bool) -> None:
    with reading(http2) as (source, reader, client, endpoint):
        assert (reader.status, reader.header("Content-Type"), reader.header("x-none")) == (200, "text/plain", "")
        for piece in (b"one", b"two"):
            source.send(piece)
            assert reader.read(timeout=20) == piece
        source.close()
        assert [reader.read(timeout=20), reader.read(timeout=None)] == [b"", b""]
        again = client.open("localhost", endpoint.server.address[1], "/", timeout=20)
        assert endpoint.server.stats()["connections_total"] == 1
        again.close()


@BOTH
def test_a_read_that_is_timed_out_or_cancelled_loses_nothing(http2: bool) -> None:
    with reading(http2) as (source, reader, _, _):
        for number in range(20):
            with pytest.raises(CallFailed) as caught:
                reader.read(timeout=0.001)
            assert caught.value.args[0] == "timeout"
            cancelled, outcome = Outcome(), Outcome()
            pending = reader.begin_read(cancelled, timeout=None)
            source.send(b"%d." % number)
            pending.cancel()
            reader.begin_read(outcome, timeout=20)
            assert (b"".join(cancelled.calls) or outcome.wait()) == b"%d." % number
            if cancelled.calls:  # it was not cancelled any more; the other one waits for the next piece
                source.send(b"next")
                assert outcome.wait() == b"next"


@BOTH
def test_closing_a_reader_ends_a_waiting_read_and_the_call(http2: bool) -> None:
    with reading(http2) as (source, reader, _, _):
        outcome = Outcome()
        reader.begin_read(outcome, timeout=None)
        reader.close()
        reader.close()
        assert outcome.wait().args[0] == "closed"
        with pytest.raises(CallFailed) as caught:
            reader.read(timeout=None)
        assert caught.value.args[0] == "closed"
        wait_until(lambda: source.closed)


@BOTH
def test_a_reader_that_goes_ends_the_call(http2: bool) -> None:
    source = Source()
    with serving(source) as (_, port):
        HttpClient(TLS, http2=http2).open("localhost", port, "/", timeout=20)
        gc.collect()
        wait_until(lambda: source.closed)


@BOTH
def test_a_server_that_breaks_off_a_stream(http2: bool) -> None:
    with reading(http2) as (source, reader, _, endpoint):
        source.send(b"one")
        assert reader.read(timeout=20) == b"one"
        endpoint.server.close()
        for _ in range(2):
            with contextlib.suppress(CallFailed):
                assert reader.read(timeout=20) == b""


def test_an_answer_that_breaks_off_stays_broken() -> None:
    with listening(tls(SERVER, answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"))) as port:
        reader = HttpClient(TLS).open("localhost", port, "/", timeout=20)
        assert reader.read(timeout=20) == b"abc"
        for _ in range(2):
            with pytest.raises(CallFailed) as caught:
                reader.read(timeout=20)
            assert caught.value.args[::2] == ("closed", True)


@BOTH
def test_opening_without_waiting(http2: bool) -> None:
    source = Source()
    with serving(source) as (_, port):
        client = HttpClient(TLS, http2=http2)
        outcome = Outcome()
        client.begin_open(outcome, "localhost", port, "/", timeout=20)
        reader = outcome.wait()
        source.send(b"one")
        assert reader.read(timeout=20) == b"one"
        client.begin_open(failed := Outcome(), "127.0.0.1", 1, "/", timeout=20)
        assert failed.wait().args[0] == "refused"


def test_readers_that_are_not_read_hold_up_no_call() -> None:
    def handler(request: Request) -> Reply | None:
        if request.path == "/":
            return 200, PLAIN, b"hello"
        stream = request.stream(200, PLAIN, capacity=64)
        while stream.send(bytes(65536)):
            pass
        return None

    with serving(handler, buffered_bytes=1 << 30) as (endpoint, port):
        client = HttpClient(TLS)
        readers = [client.open("localhost", port, "/stream", timeout=20) for _ in range(20)]
        assert client.call("localhost", port, "GET", "/", timeout=20) == OK
        assert endpoint.server.stats()["connections_total"] == 1
        for reader in readers:
            reader.close()


# --- the process ---


@contextlib.contextmanager
def child(code: str, port: int, folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A Python process with a client for that server."""
    prelude = f"""
import os, signal, sys, threading, time
from pathlib import Path
from keswick._native import CallFailed, ClientTls, HttpClient
tls = ClientTls(roots=[bytes.fromhex({SERVER.cert_der.hex()!r})],
                certificates=[bytes.fromhex({CLIENT.cert_der.hex()!r})], key=Path({str(folder / "key")!r}).read_bytes())
client, host, port = HttpClient(tls), "localhost", {port}
"""
    (folder / "key").write_bytes(CLIENT.key_der)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", prelude + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def output(code: str, port: int, folder: Path) -> str:
    with child(code, port, folder) as process:
        stdout, stderr = process.communicate(timeout=60)
        assert (stderr, process.returncode) == ("", 0)
        return stdout


@pytest.mark.parametrize(
    "code",
    [
        'client.call(host, port, "GET", "/", timeout=None)',
        'client.open(host, port, "/", timeout=None).read(timeout=None)',
    ],
)
def test_an_interrupt_ends_a_waiting_call(code: str, tmp_path: Path) -> None:
    gate = Gate()
    with serving(gate) as (_, port), child(code, port, tmp_path) as process:
        wait_until(lambda: gate.waiting)
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
        assert time.monotonic() - sent < 10
        assert stderr.rstrip().endswith("KeyboardInterrupt")
        wait_until(lambda: gate.waiting[0].gone)


def test_an_interrupted_call_is_cancelled_and_the_client_goes_on(tmp_path: Path) -> None:
    gate = Gate()
    code = """
try:
    client.call(host, port, "GET", "/", timeout=None)
except KeyboardInterrupt:
    print(client.call(host, port, "GET", "/", timeout=20)[0])
"""
    with serving(gate) as (endpoint, port), child(code, port, tmp_path) as process:
        wait_until(lambda: gate.waiting)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: len(gate.waiting) == 2)
        assert gate.waiting[0].gone
        gate.open()
        assert process.communicate(timeout=60)[0] == "200\n"
        assert endpoint.server.stats()["connections_total"] == 1


def test_signal_handlers_run_while_a_call_waits(tmp_path: Path) -> None:
    code = """
signal.signal(signal.SIGUSR1, lambda *_: client.begin(print, host, port, "GET", "/two", timeout=20))
print(client.call(host, port, "GET", "/one", timeout=20)[0])
"""
    gate = Gate()
    with serving(gate) as (_, port), child(code, port, tmp_path) as process:
        wait_until(lambda: gate.waiting)
        process.send_signal(signal.SIGUSR1)
        wait_until(lambda: len(gate.waiting) == 2)
        gate.open()
        assert process.communicate(timeout=60)[0].endswith("200\n")


def test_a_signal_that_the_main_thread_blocks_waits_for_it(tmp_path: Path) -> None:
    code = """
client.call(host, port, "GET", "/", timeout=20)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
os.kill(os.getpid(), signal.SIGINT)
client.call(host, port, "GET", "/", timeout=20)
print(signal.sigwait({signal.SIGINT}) == signal.SIGINT)
"""
    with serving() as (_, port):
        assert output(code, port, tmp_path) == "True\n"


def test_a_client_works_on_both_sides_of_a_fork(tmp_path: Path) -> None:
    code = """
kept = client.open(host, port, "/", timeout=20)
def calls():
    for _ in range(20):
        assert client.call(host, port, "GET", "/", timeout=20)[0] == 200
calls()
busy = [threading.Thread(target=calls) for _ in range(4)]
for thread in busy:
    thread.start()
children = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        calls()
        try:
            kept.read(timeout=20)
        except CallFailed as failure:
            calls()
            kept.close()
            del kept
            client.close()
            os._exit(0 if failure.args[0] == "closed" else 1)
        os._exit(2)
    children.append(child)
for thread in busy:
    thread.join()
calls()
assert kept.read(timeout=20) == b"hello"
print([os.waitpid(child, 0)[1] for child in children])
"""
    with serving() as (_, port):
        assert output(code, port, tmp_path) == "[0, 0, 0, 0, 0]\n"


@pytest.mark.parametrize(
    "code",
    [
        'client.begin(print, host, port, "GET", "/", timeout=None)',
        'client.begin(print, host, port, "GET", "/", timeout=None).cancel()',
        'reader = client.open(host, port, "/stream", timeout=None); reader.begin_read(print, timeout=None)',
        'client.begin(print, "192.0.2.1", 1, "GET", "/", timeout=None)',
        """
def again(_):
    for _ in range(5):
        client.begin(again, host, port, "GET", "/quick", timeout=None)
for _ in range(5):
    client.begin(again, host, port, "GET", "/quick", timeout=None)
time.sleep(0.1)
""",
        """
threading.Thread(target=lambda: client.call(host, port, "GET", "/", timeout=None), daemon=True).start()
time.sleep(0.05)
""",
        """
class Late:
    def __del__(self):
        print(HttpClient(tls).call(host, port, "GET", "/quick", timeout=20)[0], flush=True)
late = Late()
""",
    ],
)
def test_the_interpreter_ends_while_calls_are_pending(code: str, tmp_path: Path) -> None:
    def handler(request: Request) -> Reply | None:
        if request.path == "/quick":
            return 200, PLAIN, b""
        if request.path == "/stream":
            held.append(request.stream(200, PLAIN))
        else:
            held.append(request)
        return None

    held: list[object] = []
    with serving(handler) as (_, port):
        for _ in range(3):
            assert output(code, port, tmp_path) == ("200\n" if "Late" in code else "")
