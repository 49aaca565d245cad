"""What the services over HTTP of the tests are made of: a server that can be stopped in the middle of everything, and
started again."""

import socket
import ssl
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class Exchange(BaseHTTPRequestHandler):
    """A request, `command`, `path` and `headers` of it, and the way to answer it."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status: int, headers: Iterable[tuple[str, str]], body: bytes, *, missing: int = 0) -> None:
        """`missing`: how many bytes of the body the header promises and nobody sends."""
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body) + missing))
        self.end_headers()
        if self.command != "HEAD" and status != 204:
            self.wfile.write(body)

    def _respond(self) -> None:
        self.server.owner.respond(self)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_LIST = _respond

    def log_message(self, format: str, *args: Any) -> None:
        pass


class HttpServer:
    """Listens on a free port of 127.0.0.1, which it keeps when it is started again. Each connection has a thread."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.connections = 0
        """How many were made."""
        self._context = tls
        self._open: set[socket.socket] = set()
        self.port = 0
        self.start()
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def respond(self, exchange: Exchange) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._server = _Server(self)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all connections, and refuse new ones."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def restart(self) -> None:
        self.stop()
        self.start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, owner: HttpServer) -> None:
        self.owner = owner
        super().__init__(("127.0.0.1", owner.port), Exchange)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.owner.connections += 1
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self.owner._context
        if context is not None:  # the handshake comes with the first read, which is the connection's thread
            connection = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self.owner._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.owner._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        gone = (OSError, ValueError, HTTPException)  # of clients that go away, or do not trust it, as they do in tests
        if not isinstance(sys.exception(), gone):
            super().handle_error(request, client_address)
