"""Several servers: which one is asked, what is sent again and what is not, and what is said when none answers."""

import json
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from keswick._native import CallFailed
from keswick.client import (
    APIError,
    Client,
    ClientRefused,
    ConnectionFailed,
    KeyStoreFailed,
    Overloaded,
    ServerNotTrusted,
    TimedOut,
    TimeLimitExceeded,
)
from keswick.client.endpoint import Endpoint
from keswick.client.failover import Plan, Servers, explained
from keswick.client.replies import Reply
from keswick.identity import APIKey
from support.fake_server import Answer, fake_server
from support.server import RunningServer, start_server
from support.sockets import free_port

A, B, C = (Endpoint(name, 1) for name in "abc")


# --- the plan, without a network ---

Outcome: TypeAlias = Reply | CallFailed


def refusing(status: int, message: str) -> Reply:
    return Reply(status, "application/json", json.dumps({"message": message}).encode())


OK = Reply(200, "", b"")
REFUSED = CallFailed("refused", "", False)
CLOSED = CallFailed("closed", "", True)
NOT_SENT = CallFailed("closed", "", False)
TIMEOUT = CallFailed("timeout", "", True)
UNTRUSTED = CallFailed("untrusted", "unknown issuer", False)
NO_CERTIFICATE = CallFailed("alert", "certificate required", False)
UNREACHABLE = refusing(504, "key store is not reachable")
BROKEN = refusing(502, "failed to read key")
OVERLOAD = refusing(503, "server is overloaded, try again")
TOO_SLOW = refusing(503, "request timeout exceeded")


def follow(servers: Servers, *outcomes: Outcome, repeatable: bool = True) -> tuple[str, Outcome | Exception]:
    """Who is asked, as letters, with `.` for a pause, when the attempts end so; and what comes of it."""
    asked, waiting = "", list(outcomes)
    plan: Plan[Outcome] = servers.plan(repeatable)
    try:
        step = next(plan)
        while True:
            if isinstance(step, Endpoint):
                asked += step.host
                step = plan.send(waiting.pop(0))
            else:
                asked += "."
                step = plan.send(None)
    except StopIteration as end:
        answer: Outcome = end.value
        assert not waiting
        return asked, answer
    except (APIError, ConnectionFailed) as error:
        assert not waiting
        return asked, error


@pytest.mark.parametrize(
    "failure", [REFUSED, CLOSED, NOT_SENT, TIMEOUT, UNTRUSTED, NO_CERTIFICATE, UNREACHABLE, BROKEN, OVERLOAD, TOO_SLOW]
)
def test_what_may_be_repeated_goes_to_the_next_server(failure: Outcome) -> None:
    servers = Servers((A, B, C), 0)
    assert follow(servers, failure, OK) == ("ab", OK)
    assert follow(servers, OK) == ("b", OK)  # later calls begin with the one that answered
    assert follow(servers, failure, failure, OK) == ("bac", OK)
    assert servers.endpoints == (C, B, A)


@pytest.mark.parametrize(
    "answer", [OK, refusing(403, "no"), refusing(400, "no"), refusing(500, "no"), Reply(307, "", b"")]
)
def test_an_answer_is_an_answer(answer: Reply) -> None:
    for repeatable in (True, False):
        assert follow(Servers((A, B), 2), answer, repeatable=repeatable) == ("a", answer)


@pytest.mark.parametrize("failure", [REFUSED, NOT_SENT, UNTRUSTED, NO_CERTIFICATE, OVERLOAD])
def test_what_must_not_be_done_twice_goes_on_if_nothing_was_done(failure: Outcome) -> None:
    assert follow(Servers((A, B), 0), failure, OK, repeatable=False) == ("ab", OK)


@pytest.mark.parametrize("failure", [CLOSED, TIMEOUT, UNREACHABLE, BROKEN, TOO_SLOW])
def test_what_must_not_be_done_twice_ends_if_it_might_be_done(failure: Outcome) -> None:
    asked, error = follow(Servers((A, B), 2), failure, repeatable=False)
    assert asked == "a"
    assert isinstance(error, APIError | ConnectionFailed)
    assert not error.undone


@pytest.mark.parametrize("failure", [REFUSED, CLOSED, OVERLOAD])
def test_what_may_be_better_soon_is_tried_again_after_a_pause(failure: Outcome) -> None:
    assert follow(Servers((A, B), 2), failure, failure, failure, OK) == ("ab.ab", OK)
    asked, error = follow(Servers((A,), 2), failure, failure, failure)
    assert asked == "a.a.a"
    assert isinstance(error, Exception)


@pytest.mark.parametrize("failure", [TIMEOUT, UNTRUSTED, NO_CERTIFICATE, UNREACHABLE, BROKEN, TOO_SLOW])
def test_what_will_not_be_better_soon_is_not_tried_again(failure: Outcome) -> None:
    asked, error = follow(Servers((A, B), 2), failure, failure)
    assert asked == "ab"
    assert isinstance(error, Exception)
    assert follow(Servers((A, B, C), 1), failure, REFUSED, failure, OK) == ("abc.b", OK)


def test_pauses_grow_and_differ() -> None:
    plan: Plan[Outcome] = Servers((A,), 8).plan(repeatable=True)
    next(plan)
    pauses = []
    for _ in range(8):
        pause = plan.send(REFUSED)
        assert isinstance(pause, float)
        pauses.append(pause)
        plan.send(None)
    for pause, middle in zip(pauses, (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5), strict=True):
        assert middle / 2 <= pause <= middle * 1.5
    assert len(set(pauses)) == 8


@pytest.mark.parametrize(
    ("failures", "kind", "message"),
    [
        ([UNTRUSTED], ServerNotTrusted, "the certificate of https://a:1 is not trusted (unknown issuer): set KES_CA_"),
        (
            [NO_CERTIFICATE],
            ClientRefused,
            "https://a:1 demands a client certificate: give an API key, or a certificate",
        ),
        ([TIMEOUT], TimedOut, "https://a:1 does not answer in time"),
        ([TOO_SLOW], TimeLimitExceeded, "request timeout exceeded"),
        ([OVERLOAD], Overloaded, "server is overloaded, try again"),
        ([BROKEN, UNREACHABLE], KeyStoreFailed, "failed to read key"),
        ([TIMEOUT, BROKEN], KeyStoreFailed, "failed to read key"),
        (
            [REFUSED, CLOSED],
            ConnectionFailed,
            "no server answers: cannot connect to https://a:1: connection refused; does a server run there?; "
            "https://b:1 closed the connection before its answer was complete",
        ),
    ],
)
def test_what_is_raised_in_the_end(failures: list[Outcome], kind: type[Exception], message: str) -> None:
    _, error = follow(Servers((A, B)[: len(failures)], 0), *failures)
    assert type(error) is kind
    assert str(error).startswith(message)


@pytest.mark.parametrize(
    ("kind", "detail", "words"),
    [
        ("resolve", "Name or service not known", "cannot connect to https://a:1: Name or service not known"),
        ("connect", "No route to host", "cannot connect to https://a:1: No route to host"),
        ("connect_timeout", "", "https://a:1 does not let anyone connect in time"),
        ("no_tls", "", "https://a:1 does not speak TLS"),
        ("name", "", "the certificate of https://a:1 is not valid for 'a': use a name or address that is in the cert"),
        ("expired", "", "the certificate of https://a:1 has expired: the server needs a new one"),
        ("not_yet_valid", "", "the certificate of https://a:1 is not valid yet: see whether the clocks here and there"),
        ("alert", "handshake failure", "https://a:1 demands a client certificate"),
        (
            "alert",
            "unknown ca",
            "https://a:1 does not accept the client certificate (unknown ca): it verifies its clients",
        ),
        ("alert", "bad certificate", "https://a:1 does not accept the client certificate (bad certificate)"),
        ("alert", "protocol version", "https://a:1 refuses the TLS connection (protocol version)"),
        ("tls", "no kx group in common", "no TLS connection to https://a:1: no kx group in common"),
        ("protocol", "invalid HTTP version", "https://a:1 does not answer as an HTTP server: invalid HTTP version"),
        ("too_long", "more than 7 bytes", "the answer of https://a:1 is too long: more than 7 bytes"),
        ("cancelled", "", "the call of https://a:1 ended (cancelled)"),
    ],
)
def test_every_failure_has_words(kind: str, detail: str, words: str) -> None:
    assert str(explained(A, CallFailed(kind, detail, False))).startswith(words)


# --- over a network ---


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


def test_what_must_not_be_done_twice_is_not_sent_twice(tmp_path: Path) -> None:
    with (
        fake_server(tmp_path, lambda *_: Answer(silent=True)) as server,
        Client([server.endpoint, f"127.0.0.1:{free_port()}"], ca_file=server.ca_file, retries=1) as client,
    ):
        with pytest.raises(ConnectionFailed, match=r"before its answer was complete\Z"):
            client.create_key("k")
        assert server.calls == ["POST /v1/key/create/k"]
        with pytest.raises(ConnectionFailed, match="no server answers"):
            client.ready()
        assert server.calls[1:] == ["GET /v1/ready"] * 2


def test_an_overloaded_server_gets_a_create_again(tmp_path: Path) -> None:
    answers = [Answer(503, b'{"message":"server is overloaded, try again"}'), Answer()]
    with (
        fake_server(tmp_path, lambda *_: answers.pop(0)) as server,
        Client(server.endpoint, ca_file=server.ca_file) as client,
    ):
        client.create_key("k")
        assert server.calls == ["POST /v1/key/create/k"] * 2


@contextmanager
def two_servers(folder: Path) -> Iterator[tuple[RunningServer, RunningServer, Path]]:
    """Two real servers that share a key store and an admin, and a file of both certificates."""
    with start_server(folder / "first") as first:
        admin = {"identity": APIKey.parse(first.api_key).identity}
        store = {"fs": {"path": str(first.folder / "keys")}}
        with start_server(folder / "second", admin=admin, keystore=store) as second:
            authorities = folder / "both.crt"
            authorities.write_bytes(first.ca_file.read_bytes() + second.ca_file.read_bytes())
            yield first, second, authorities


def test_a_server_that_is_killed_in_the_middle_of_calls_is_not_missed(tmp_path: Path) -> None:
    calls, threads = 200, 4
    with (
        two_servers(tmp_path) as (first, second, authorities),
        Client([first.endpoint, second.endpoint], api_key=first.api_key, ca_file=authorities) as client,
        ThreadPoolExecutor(threads) as pool,
    ):
        client.create_key("k")
        done = threading.Semaphore(0)

        def call_often() -> None:
            for _ in range(calls):
                plaintext, ciphertext = client.generate_key("k")
                assert client.decrypt("k", ciphertext) == plaintext
                done.release()

        working = [pool.submit(call_often) for _ in range(threads)]
        for _ in range(calls):
            done.acquire()
        first.stop(signal.SIGKILL)
        for work in working:
            work.result(60)
        assert client.endpoints[0] == second.endpoint
        assert client.metrics().total("kes_http_request_error") == 0.0


def test_a_create_is_not_done_twice_when_its_server_is_killed(tmp_path: Path) -> None:
    """Each name is created on one server only, so none is refused as being there already."""
    with (
        two_servers(tmp_path) as (first, second, authorities),
        Client([first.endpoint, second.endpoint], api_key=first.api_key, ca_file=authorities) as client,
    ):
        killer = threading.Timer(0.2, first.stop, [signal.SIGKILL])
        killer.start()
        created: list[str] = []
        lost: ConnectionFailed | None = None
        while lost is None and client.endpoints[0] == first.endpoint:
            name = f"k{len(created)}"
            try:
                client.create_key(name)
            except ConnectionFailed as failure:
                lost = failure
            created.append(name)
        killer.join()
        assert lost is None or lost.sent
        client.create_key("afterwards")
        there = set(client.list_keys())
        assert {*created[:-1], "afterwards"} <= there <= {*created, "afterwards"}
        assert client.endpoints[0] == second.endpoint
