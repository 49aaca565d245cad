"""How a server leaves: it says so, is still there for those who have not heard it, and ends what it has begun."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from keswick.identity import APIKey, identity_of
from support.api import Answer, Caller, new_pair
from support.certificates import Pair
from support.cli import clean_environment
from support.proxy import forwarding
from support.server import start_server, write_config
from support.transport import wait_until


def with_admin(**config: Any) -> tuple[dict[str, Any], Pair]:
    pair = new_pair()
    return {"admin": {"identity": identity_of(pair.public_key_der)}, **config}, pair


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=20).close()
    except ConnectionError:
        return True
    return False


def test_first_it_is_not_ready_and_serves_all_the_same(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        second = free.getsockname()[1]
    config, pair = with_admin(stop={"delay": "1h"}, metrics={"address": f"127.0.0.1:{second}"})
    with start_server(tmp_path, **config) as server:
        kept = Caller(server.port, pair, tmp_path)
        assert kept.call("GET", "/v1/ready").status == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: kept.call("GET", "/v1/ready").status == 503)
        new = Caller(server.port, pair, tmp_path)
        for caller in (kept, new):
            answer = caller.call("GET", "/v1/ready")
            assert (answer.status, answer.message) == (503, "server is stopping")
            assert "connection" not in answer.headers
            assert caller.call("PUT", f"/v1/key/create/{id(caller)}").status == 200
        assert _plain(second).status == 503
        assert server.stop() == -signal.SIGTERM  # the second signal ends it at once


def _plain(port: int) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/v1/ready")
    response = connection.getresponse()
    answer = Answer(response.status, {}, response.read())
    connection.close()
    return answer


def test_after_its_delay_it_ends_by_itself(tmp_path: Path) -> None:
    config, pair = with_admin(stop={"delay": "200ms", "linger": "0s"})
    with start_server(tmp_path, **config) as server:
        assert Caller(server.port, pair, tmp_path).call("GET", "/v1/ready").status == 200
        assert server.stop() == 0
        assert server.stdout.endswith("=> Stopping server... Goodbye.\n")


def test_an_idle_connection_may_bring_one_more_request(tmp_path: Path) -> None:
    config, pair = with_admin(stop={"linger": "1h"})
    with start_server(tmp_path, **config) as server, forwarding(server.port, pair, tmp_path) as kept:
        assert kept.ask("/version").status == 200
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refuses(server.port))
        answer = kept.ask("/v1/ready")
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert server.process.wait(20) == 0


def test_what_a_reload_says_of_the_end_counts(tmp_path: Path) -> None:
    config, pair = with_admin(stop={"linger": "1h"})
    with start_server(tmp_path, **config) as server, forwarding(server.port, pair, tmp_path) as kept:
        assert kept.ask("/version").status == 200
        server.reload(**{**config, "stop": {"linger": "0s"}})
        assert "takes effect" not in server.stderr
        assert server.stop() == 0


def test_streams_go_on_until_the_delay_is_over(tmp_path: Path) -> None:
    config, pair = with_admin(stop={"delay": "500ms", "linger": "0s"})
    with start_server(tmp_path, **config) as server:
        with Caller(server.port, pair, tmp_path).context.wrap_socket(
            socket.create_connection(("127.0.0.1", server.port), timeout=20)
        ) as stream:
            stream.sendall(b"GET /v1/log/audit HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert stream.recv(1 << 16).startswith(b"HTTP/1.1 200")
            server.process.send_signal(signal.SIGTERM)
            caller = Caller(server.port, pair, tmp_path)
            wait_until(lambda: caller.call("GET", "/v1/ready").status == 503)
            received = b""
            while data := stream.recv(1 << 16):
                received += data
        events = [json.loads(line) for line in received.split(b"\r\n") if line.startswith(b"{")]
        assert any(event["response"]["code"] == 503 for event in events)
        assert server.process.wait(20) == 0


FIRST_OF_A_CONTAINER = """
import os, sys, time
from keswick.server import lifecycle
from keswick.server.options import ServerOptions

def hang(config):
    print("hangs", flush=True)
    time.sleep(100)

os.getpid = lambda: 1
lifecycle._load_tls = hang
lifecycle.run(ServerOptions(config=sys.argv[1]))
"""


def test_one_that_has_not_begun_to_serve_ends_at_once_even_as_the_first_process_of_a_container(tmp_path: Path) -> None:
    config = write_config(tmp_path, APIKey.generate(), {})
    command = [sys.executable, "-c", FIRST_OF_A_CONTAINER, str(config)]
    with subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hangs\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
