"""A service over HTTP that goes wrong when a test says so: all is passed on to the real one, until a fault is on.

with FaultProxy(upstream_port) as proxy:
    store = open(proxy.endpoint)
    with proxy.fault("denied"):
        ...
"""

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import NamedTuple

from support.http_server import Exchange, HttpServer

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


class FaultProxy(HttpServer):
    """`upstream`: the port of 127.0.0.1 of a service that speaks no TLS. `tls`: the proxy does."""

    def __init__(self, upstream: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.upstream = upstream
        self.active: str | None = None
        self.requests: list[tuple[str, str]] = []
        """Method and path of every request that came."""
        self.recorded: list[Request] = []
        """The same, whole."""
        self.choose: Callable[[Request], str | None] = lambda request: self.active
        """Told of each request before it is passed on; the fault that it gets."""
        self._released = threading.Event()
        super().__init__(tls)

    def stop(self) -> None:
        self._released.set()
        super().stop()

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        assert name in FAULTS, name
        self._released.clear()
        self.active = name
        if name == "refused":
            self.stop()
        try:
            yield
        finally:
            if name == "refused":
                self.start()
            self.active = None
            self._released.set()

    def respond(self, exchange: Exchange) -> None:
        headers = {name.lower(): value for name, value in exchange.headers.items()}
        request = Request(exchange.command, exchange.path, headers, exchange.body())
        self.requests.append((request.method, request.path))
        self.recorded.append(request)
        chosen = self.choose(request)
        match chosen:
            case str(name) if name in ANSWERS:
                status, text = ANSWERS[name]
                return exchange.answer(status, [("Content-Type", "application/json")], text)
            case "hanging":
                self._released.wait(60)
                exchange.close_connection = True
                return None
            case "cut":
                exchange.answer(200, [], b'{"data":', missing=1000)
                exchange.close_connection = True
                return None
        upstream = HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        try:
            passed = {name: value for name, value in exchange.headers.items() if name.lower() not in _HOP}
            upstream.request(request.method, request.path, request.body or None, passed)
            answer = upstream.getresponse()
            text = answer.read()
        finally:
            upstream.close()
        if "lost" in (chosen, self.active):
            exchange.close_connection = True
            return None
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
        return exchange.answer(answer.status, kept, text)
