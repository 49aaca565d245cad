"""A scripted HTTPS server, for what the real one does not do: odd replies, silence, connections that break."""

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.certificates import make
from support.http_server import Exchange, HttpServer


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


class FakeServer(HttpServer):
    def __init__(self, tls: ssl.SSLContext, ca_file: Path, reply: Callable[[str, str], Answer]) -> None:
        self.ca_file = ca_file
        self.calls: list[str] = []
        """`METHOD path body` of each request, in order."""
        self.peers: set[tuple[str, int]] = set()
        """The clients' addresses, one for each connection that made a request."""
        self._reply = reply
        super().__init__(tls)

    def respond(self, exchange: Exchange) -> None:
        self.calls.append(f"{exchange.command} {exchange.path} {exchange.body().decode()}".rstrip())
        self.peers.add(exchange.client_address)
        answer = self._reply(exchange.command, exchange.path)
        if not answer.silent:
            exchange.answer(answer.status, [("Content-Type", answer.content_type)], answer.body, missing=answer.missing)
        exchange.close_connection = answer.close or answer.silent or answer.missing > 0


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

    with FakeServer(context, cert, reply) as fake:
        yield fake
