"""A service over HTTP that goes wrong when a test says so: all is passed on to the real one, until a fault is on.

with FaultProxy(upstream_port) as proxy:
    store = open(proxy.endpoint)
    with proxy.fault("denied"):
        ...
"""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple

ANSWERS: Mapping[str, tuple[int, bytes]] = {
    "denied": (403, b'{"message":"denied"}'),
    "throttled": (429, b'{"message":"slow down"}'),
    "troubled": (500, b'{"message":"trouble"}'),
    "away": (503, b"no healthy upstream"),
    "garbage": (200, b"<html>welcome</html>"),
    "empty": (200, b""),
    "wrong": (200, b'{"data":[1,2,3],"names":7}'),
}
"""What is answered at once, by the name of the fault."""

FAULTS = (*ANSWERS, "refused", "lost", "hanging", "cut")
"""`refused`: nobody listens; `lost`: the connection ends after the request was passed on and carried out; `hanging`: no
answer ever comes; `cut`: half of one does."""


class Request(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    """By name, in small letters."""
    body: bytes


_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class FaultProxy:
    """Listens on a free port of 127.0.0.1 for a service on another port of it, which speaks no TLS. `tls`: the proxy
    does."""

    def __init__(self, upstream: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = upstream
        self._tls = tls
        self.active: str | None = None
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request that came."""
        self.recorded: list[Request] = []
        """The same, whole."""
        self.choose: Callable[[Request], str | None] = lambda request: self.active
        """Told of each request before it is passed on; the fault that it gets."""
        self.connections = 0
        """How many were made."""
        self._released = threading.Event()
        self._listen(0)
        self.port: int = self._server.server_address[1]
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._released.set()
        self._close()

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        assert name in FAULTS, name
        self._released.clear()
        self.active = name
        if name == "refused":
            self._close()
        try:
            yield
        finally:
            if name == "refused":
                self._listen(self.port)
            self.active = None
            self._released.set()

    def _listen(self, port: int) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                proxy.connections += 1
                proxy._open.add(self.connection)
                self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def finish(self) -> None:
                proxy._open.discard(self.connection)
                super().finish()

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (ConnectionError, ssl.SSLError, ValueError, HTTPException):
                    self.close_connection = True

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def do(self) -> None:
                body = self._body()
                proxy.requests.append((self.command, self.path))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, body or b"")
                proxy.recorded.append(request)
                chosen = proxy.choose(request)
                match chosen:
                    case str(name) if name in ANSWERS:
                        status, text = ANSWERS[name]
                        return self._answer(status, [("Content-Type", "application/json")], text)
                    case "hanging":
                        proxy._released.wait(60)
                        self.close_connection = True
                        return None
                    case "cut":
                        self.send_response(200)
                        self.send_header("Content-Length", "1000")
                        self.end_headers()
                        self.wfile.write(b'{"data":')
                        self.close_connection = True
                        return None
                passed = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
                upstream = HTTPConnection("127.0.0.1", proxy.upstream, timeout=30)
                try:
                    upstream.request(self.command, self.path, body, passed)
                    answer = upstream.getresponse()
                    text = answer.read()
                finally:
                    upstream.close()
                if "lost" in (chosen, proxy.active):
                    self.close_connection = True
                    return None
                kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
                return self._answer(answer.status, kept, text)

            do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_LIST = do

            def _body(self) -> bytes | None:
                if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                    body = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return body
                length = self.headers.get("Content-Length")
                return self.rfile.read(int(length)) if length else None

            def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD" and status != 204:
                    self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                if proxy._tls is not None:  # the handshake comes with the first read, which is the connection's thread
                    connection = proxy._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
                return connection, address

        self._open: set[socket.socket] = set()
        self._server = Server(("127.0.0.1", port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
