"""A scripted HTTPS server, for what the real one does not do: odd replies, silence, connections that break."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from support.certificates import make


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    close: bool = False
    """Whether the connection ends after the answer, without saying so."""
    silent: bool = False
    """Whether the connection ends instead of an answer."""
    missing: int = 0
    """How many bytes of the body the header promises and the server does not send."""


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class FakeServer:
    endpoint: str
    ca_file: Path
    calls: list[str] = field(default_factory=list)
    """`METHOD path body` of each request, in order."""
    peers: set[tuple[str, int]] = field(default_factory=set)
    """The clients' addresses, one for each connection that made a request."""


@contextmanager
def fake_server(
    folder: Path,
    reply: Callable[[str, str], Answer] = lambda method, path: Answer(),
    *,
    sans: tuple[str, ...] = ("127.0.0.1", "localhost"),
    client_ca: Path | None = None,
    days: tuple[float, float] = (-1, 30),
) -> Iterator[FakeServer]:
    """Serve `reply(method, path)` on 127.0.0.1. With `client_ca` clients must show a certificate that chains to it."""
    cert, key = make("p256", sans=sans, days=days).write(folder, "fake-server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

        def finish(self) -> None:
            super().finish()
            self.request.close()

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fake.calls.append(f"{self.command} {self.path} {body.decode()}".rstrip())
            fake.peers.add(self.client_address)
            answer = reply(self.command, self.path)
            self.close_connection = answer.close or answer.silent
            if answer.silent:
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body) + answer.missing))
            self.end_headers()
            self.wfile.write(answer.body)
            self.close_connection = answer.close or answer.missing > 0

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that go away, as they do in tests

    server = Server(("127.0.0.1", 0), Handler)
    fake = FakeServer(f"https://127.0.0.1:{server.server_address[1]}", cert)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
