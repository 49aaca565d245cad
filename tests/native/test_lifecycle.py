import contextlib
import errno
import gc
import os
import socket
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest

from keswick._native import Reply, Request, Server
from support.transport import PLAIN, Endpoint, hello, is_closed, read_response, refuses_connections, wait_until

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def plain_server(**options: object) -> Server:
    arguments: dict[str, object] = {"host": "127.0.0.1", "port": 0, "tls": None} | options
    return Server(hello, **arguments)  # type: ignore[arg-type]


def socket_of_this_process(*, peer: tuple[str, int]) -> socket.socket:
    """A second descriptor of the socket that is connected to that address."""
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if link.readlink().name.startswith("socket:"):
                found = socket.socket(fileno=os.dup(int(link.name)))
                with contextlib.suppress(OSError):
                    if found.getpeername() == peer:
                        return found
                found.close()
    raise AssertionError(f"no socket is connected to {peer}")


def test_an_address_in_use() -> None:
    first = plain_server()
    with pytest.raises(OSError, match="Address already in use") as caught:
        plain_server(port=first.address[1])
    assert caught.value.errno == errno.EADDRINUSE
    first.close()


def test_an_address_that_there_is_not() -> None:
    with pytest.raises(OSError, match="Cannot assign requested address"):
        plain_server(host="192.0.2.1")
    with pytest.raises(OSError, match=r"Name or service not known|failed to lookup address"):
        plain_server(host="no such host")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0", "::"])
def test_hosts(host: str) -> None:
    server = plain_server(host=host)
    server.start()
    target = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, server.address[0])
    with socket.create_connection((target, server.address[1]), timeout=20) as connected:
        connected.sendall(GET)
        assert read_response(connected)[0] == 200
    server.close()


def test_a_peer_has_its_ipv4_address_on_a_listener_for_both() -> None:
    peers: list[str] = []

    def handler(request: Request) -> Reply:
        peers.append(request.connection.peer)
        return 200, PLAIN, b""

    server = Server(handler, host="::", port=0, tls=None)
    server.start()
    for target in ("127.0.0.1", "::1"):
        with socket.create_connection((target, server.address[1]), timeout=20) as connected:
            connected.sendall(GET)
            read_response(connected)
    server.close()
    assert peers == ["127.0.0.1", "::1"]


def test_a_connection_sends_at_once_and_finds_dead_peers() -> None:
    server = plain_server()
    server.start()
    with socket.create_connection(server.address, timeout=20) as connected:
        connected.sendall(GET)
        read_response(connected)
        with socket_of_this_process(peer=connected.getsockname()) as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 15
    server.close()


def test_it_starts_once_and_closes_often() -> None:
    server = plain_server()
    server.start()
    with pytest.raises(RuntimeError, match="already"):
        server.start()
    server.close()
    server.close()
    with pytest.raises(RuntimeError, match="closed"):
        server.start()
    server.drain()
    assert server.wait_drained(0)
    assert server.stats()["connections"] == 0


def test_a_server_that_was_never_started_lets_go_of_its_address() -> None:
    server = plain_server()
    address = server.address
    del server
    gc.collect()
    plain_server(port=address[1]).close()


def test_a_dropped_server_closes() -> None:
    def handler(_request: Request) -> Reply:
        return 200, PLAIN, b""

    gone = weakref.ref(handler)
    server = Server(handler, host="127.0.0.1", port=0, tls=None)
    server.start()
    address = server.address
    del server, handler
    gc.collect()
    assert gone() is None
    plain_server(port=address[1]).close()


@pytest.mark.parametrize("alpn", ["http/1.1", "h2"])
def test_closing_cuts_everything(alpn: str) -> None:
    waiting: list[Request] = []
    with Endpoint(lambda request: waiting.append(request)) as endpoint:
        idle = endpoint.connect(alpn=alpn)
        half_open = endpoint.half_open()
        busy = endpoint.connect()
        busy.sendall(GET)
        wait_until(lambda: waiting)
        endpoint.server.close()
        assert waiting[0].gone
        assert not waiting[0].respond(200, PLAIN, b"")
        assert is_closed(busy)
        assert is_closed(half_open)
        assert endpoint.server.stats()["connections"] == 0
        assert refuses_connections(endpoint.server)
        idle.close()


def test_closing_from_the_handler() -> None:
    def handler(_request: Request) -> Reply:
        endpoint.server.close()
        return 200, PLAIN, b"closed"

    with Endpoint(handler) as endpoint:
        with endpoint.connect() as connected:
            connected.sendall(GET)
            connected.recv(100)
        wait_until(lambda: refuses_connections(endpoint.server))


def test_the_last_answer_is_read_although_the_client_still_sends() -> None:
    """A socket that is closed with unread bytes is reset, and what was sent before may be lost."""
    with Endpoint(drained_bytes=1) as endpoint:
        for _ in range(20):
            with endpoint.connect() as connected:
                connected.sendall(b"POST / HTTP/1.1\r\nHost: l\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 500_000)
                time.sleep(0.01)
                connected.sendall(b"x" * 500_000)
                assert read_response(connected)[0] == 413


FEW_DESCRIPTORS = """
import os, resource, sys, time
from keswick._native import Headers, Server

server = Server(lambda request: (200, Headers(), b"hello"), host="127.0.0.1", port=0, tls=None)
server.start()
open_now = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 10, open_now + 10))
print(server.address[1], flush=True)
for _ in sys.stdin:
    before = time.process_time()
    time.sleep(0.5)
    print(time.process_time() - before, flush=True)
"""


def test_a_server_without_descriptors_waits_for_some() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FEW_DESCRIPTORS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        address = ("127.0.0.1", int(process.stdout.readline()))
        connections = [socket.create_connection(address, timeout=20) for _ in range(50)]
        for connected in connections:
            connected.sendall(GET)
        assert read_response(connections[0])[0] == 200
        process.stdin.write("\n")
        process.stdin.flush()
        # It would be busy all the time if it tried again at once.
        assert float(process.stdout.readline()) < 0.25
        for connected in connections[:-1]:
            connected.close()
        assert read_response(connections[-1])[0] == 200
        connections[-1].close()
        with socket.create_connection(address, timeout=20) as connected:
            connected.sendall(GET)
            assert read_response(connected)[0] == 200
        process.stdin.close()
        assert process.wait(20) == 0


PROGRAM = """
import socket, sys, threading
from keswick._native import Headers, Server

requests = []

def handler(request):
    requests.append(request)
    request.stream(200, Headers()).on_close(lambda: None) if request.path == "/stream" else None
    return None if request.path == "/wait" else (200, Headers(), b"x")

server = Server(handler, host="127.0.0.1", port=0, tls=None)
server.start()
address = server.address

def ask(path):
    connected = socket.create_connection(address)
    connected.sendall(f"GET {path} HTTP/1.1\\r\\nHost: l\\r\\n\\r\\n".encode())
    return connected

def flood():
    while True:
        try:
            connected = ask("/")
            connected.recv(100)
            connected.close()
        except OSError:
            return

kept = [ask("/wait"), ask("/stream"), ask("/")]
for _ in range(4):
    threading.Thread(target=flood, daemon=True).start()
while len(requests) < 20:
    pass
END
print("end")
"""


@pytest.mark.parametrize(
    "end", ["", "del server", "sys.exit(0)", "server.close()", "server.drain()", "raise SystemExit"]
)
def test_the_interpreter_ends_under_a_busy_server(end: str) -> None:
    program = PROGRAM.replace("END", end)
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
