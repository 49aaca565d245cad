"""What fakes of services with a REST API share: a server with or without TLS that can be stopped, started again, and
told to answer oddly. A fake says what it makes of a request in `handle`.

with FakeThing(tls=pair) as thing:
    store = open(thing.endpoint)
    thing.restart()
    with thing.instead(lambda request: Reply(429, {"error": "slow down"})):
        ...
"""

import json
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from support.certificates import Pair
from support.http_server import Exchange, HttpServer


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


class RestService(HttpServer):
    """Requests come from many threads; they are handled one at a time. `clients`: whose certificates clients have to
    show."""

    def __init__(self, tls: Pair | None = None, *, clients: Pair | None = None) -> None:
        self.requests: list[Request] = []
        self._odd: Callable[[Request], Reply | None] = lambda request: None
        self._handling = threading.Lock()
        context = None
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            with tempfile.TemporaryDirectory() as folder:
                context.load_cert_chain(*tls.write(Path(folder)))
            if clients is not None:
                context.load_verify_locations(cadata=clients.cert_der)
                context.verify_mode = ssl.CERT_REQUIRED
        super().__init__(context)

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

    def respond(self, exchange: Exchange) -> None:
        request = Request(exchange.command, exchange.path, exchange.headers, exchange.body())
        with self._handling:
            self.requests.append(request)
            reply = self._odd(request) or self.handle(request)
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        exchange.answer(reply.status, [("Content-Type", reply.content_type), *reply.headers.items()], body)
