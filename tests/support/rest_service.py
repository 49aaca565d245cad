"""What fakes of services with a REST API share: a server with or without TLS that can be stopped, started again, and
told to answer oddly. A fake says what it makes of a request in `handle`.

with FakeThing(tls=pair) as thing:
    store = open(thing.endpoint)
    thing.restart()
    with thing.instead(lambda request: Reply(429, {"error": "slow down"})):
        ...
"""

import json
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from support.certificates import Pair


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    """As it was sent."""
    headers: "Message[str, str]"
    body: bytes = field(repr=False)

    @property
    def segments(self) -> tuple[str, ...]:
        """Of the path, decoded."""
        return tuple(unquote(segment) for segment in urlsplit(self.target).path.split("/")[1:])

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True, strict_parsing=True))

    def is_of(self, method: str, ending: str) -> bool:
        return self.method == method and urlsplit(self.target).path.endswith(ending)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: Any = b""
    """Bytes, or what is sent as JSON."""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    """More of them."""


class RestService:
    """Listens on a free port of 127.0.0.1, which it keeps when it is started again. Requests come from many threads;
    they are handled one at a time. `clients`: whose certificates clients have to show."""

    def __init__(self, tls: Pair | None = None, *, clients: Pair | None = None) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        """How many were made."""
        self._odd: Callable[[Request], Reply | None] = lambda request: None
        self._handling = threading.Lock()
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with tempfile.TemporaryDirectory() as folder:
                self._context.load_cert_chain(*tls.write(Path(folder)))
            if clients is not None:
                self._context.load_verify_locations(cadata=clients.cert_der)
                self._context.verify_mode = ssl.CERT_REQUIRED
        self.port = 0
        self.start()
        self.endpoint = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def handle(self, request: Request) -> Reply:
        raise NotImplementedError

    @contextmanager
    def instead(self, odd: Callable[[Request], Reply | None]) -> Iterator[None]:
        """Answer with what `odd` says, where it says anything."""
        self._odd = odd
        try:
            yield
        finally:
            self._odd = lambda request: None

    @contextmanager
    def losing(self, method: str, ending: str = "", *, then: Callable[[], object] = lambda: None) -> Iterator[None]:
        """The first such request is carried out, but answered as by a proxy that lost its server."""
        lost = False

        def lose(request: Request) -> Reply | None:
            nonlocal lost
            if lost or not request.is_of(method, ending):
                return None
            lost = True
            self.handle(request)
            then()
            return Reply(502, b"<html>bad gateway</html>", "text/html")

        with self.instead(lose):
            yield
        assert lost

    def seen(self, method: str, ending: str) -> list[Request]:
        """Requests whose path has that ending."""
        return [request for request in self.requests.copy() if request.is_of(method, ending)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._open: set[socket.socket] = set()
        self._server = self._new_server()
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close all connections, and refuse new ones."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        for connection in list(self._open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def restart(self) -> None:
        self.stop()
        self.start()

    def _answer(self, request: Request) -> Reply:
        with self._handling:
            self.requests.append(request)
            return self._odd(request) or self.handle(request)

    def _new_server(self) -> ThreadingHTTPServer:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                service.connections += 1
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if service._context is not None:
                    self.request = service._context.wrap_socket(self.request, server_side=True)
                service._open.add(self.request)
                super().setup()

            def finish(self) -> None:
                super().finish()
                service._open.discard(self.request)
                self.request.close()

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                reply = service._answer(Request(self.command, self.path, self.headers, body))
                text = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                self.send_header("Content-Type", reply.content_type)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.status != 204:
                    self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                if reply.status != 204:
                    self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that go away, or do not trust it, as they do in tests

        return Server(("127.0.0.1", self.port), Handler)
