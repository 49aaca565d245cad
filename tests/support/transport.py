"""A native server around a handler, and clients for it.

with Endpoint(lambda request: (200, PLAIN, b"hello")) as endpoint:
    with endpoint.client() as client:
        client.get("/")
"""

import itertools
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import h2.config
import h2.connection
import h2.events
import httpx
import hyperframe.frame

from keswick._native import Headers, Reply, Request, Server, Tls
from support.certificates import Pair, make

PLAIN = Headers([("Content-Type", "text/plain")])
OVERLOAD: Reply = (503, PLAIN, b"overload")
TIMEOUT: Reply = (408, PLAIN, b"timeout")
TOO_LARGE: Reply = (413, PLAIN, b"too large")
MALFORMED: Reply = (400, PLAIN, b"malformed")
ERROR: Reply = (500, PLAIN, b"error")

Handler = Callable[[Request], Reply | None]

SERVER = make("p256", sans=["localhost", "127.0.0.1"])
CLIENT = make("ed25519", name="client")


class Connected(Protocol):
    """What is used of a socket here."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...


def hello(_request: Request) -> Reply:
    return 200, PLAIN, b"hello"


def wait_until(condition: Callable[[], object], *, seconds: float = 20) -> None:
    """Ask again and again until it is true; fail when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.005)


def server_tls(server: Pair = SERVER, **options: Any) -> Tls:
    return Tls(certificates=[server.cert_der], key=server.key_der, **options)


class Endpoint:
    """A running server on a free port of 127.0.0.1."""

    def __init__(
        self,
        handler: Handler = hello,
        *,
        tls: Tls | None = None,
        plain: bool = False,
        proxy_protocol: tuple[Sequence[str], float] | None = None,
        **limits: float,
    ) -> None:
        self.plain = plain
        self.server = Server(
            handler,
            host="127.0.0.1",
            port=0,
            tls=None if plain else tls or server_tls(),
            body_limits=[("/", 1000), ("/none", 0), ("/few", 3), ("/large", 5_000_000)],
            limits=limits,
            replies={
                "overload": OVERLOAD,
                "timeout": TIMEOUT,
                "too_large": TOO_LARGE,
                "malformed": MALFORMED,
                "error": ERROR,
            },
            proxy_protocol=proxy_protocol,
        )

        self.sockets: list[socket.socket] = []
        self.files = itertools.count()
        self.folder = tempfile.TemporaryDirectory()
        self.trusted, _ = SERVER.write(Path(self.folder.name), "server")

    def __enter__(self) -> "Endpoint":
        self.server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.server.close()
        for connected in self.sockets:
            connected.close()
        self.folder.cleanup()

    @property
    def url(self) -> str:
        return f"{'http' if self.plain else 'https'}://127.0.0.1:{self.server.address[1]}"

    def context(
        self, client: Pair | None = CLIENT, *, alpn: str | None = None, chain: tuple[Pair, ...] = ()
    ) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.trusted)
        if client:
            context.load_cert_chain(*client.write(Path(self.folder.name), f"client-{next(self.files)}", chain=chain))
        if alpn:
            context.set_alpn_protocols([alpn])
        return context

    def client(self, *, http2: bool = False, pair: Pair | None = CLIENT, **options: Any) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, http2=http2, http1=not http2, verify=self.context(pair), timeout=20, **options
        )

    def connect(self, client: Pair | None = CLIENT, *, alpn: str | None = None, first: bytes = b"") -> socket.socket:
        """A connected socket, after the handshake. What comes `first` is sent before that."""
        raw = self.half_open()
        raw.sendall(first)
        if self.plain:
            return raw
        connected = self.context(client, alpn=alpn).wrap_socket(raw, server_hostname="localhost")
        self.sockets.append(connected)
        return connected

    def half_open(self, *, source: str = "127.0.0.1") -> socket.socket:
        """A connected socket that has sent nothing. It is closed with the endpoint at the latest."""
        raw = socket.create_connection(self.server.address, timeout=20, source_address=(source, 0))
        self.sockets.append(raw)
        return raw

    @contextmanager
    def http2(self, *, first: bytes = b"") -> Iterator["Http2"]:
        with self.connect(alpn="h2", first=first) as connected:
            yield Http2(connected)


class Http2:
    """An HTTP/2 connection, frame by frame."""

    def __init__(self, connected: Connected) -> None:
        self.socket = connected
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.unparsed = b""
        self.reads = True
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def request(self, method: str = "GET", path: str = "/", *, end: bool = True, **headers: str) -> int:
        """Send the header of a request; its stream."""
        stream = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "localhost")]
        self.h2.send_headers(stream, fields + list(headers.items()), end_stream=end)
        self.flush()
        return stream

    def events(self) -> Iterator[h2.events.Event]:
        """What comes, until the server closes the connection.

        The `h2` package takes a connection for closed after the first GOAWAY, which announces an end and is none: it
        is reported here and kept from it.
        """
        while data := self.socket.recv(65536):
            self.unparsed += data
            while len(self.unparsed) >= 9:
                frame, length = hyperframe.frame.Frame.parse_frame_header(memoryview(self.unparsed)[:9])
                if len(self.unparsed) < 9 + length:
                    break
                raw, self.unparsed = self.unparsed[: 9 + length], self.unparsed[9 + length :]
                if isinstance(frame, hyperframe.frame.GoAwayFrame):
                    frame.parse_body(memoryview(raw)[9:])
                    end = h2.events.ConnectionTerminated()
                    end.error_code = frame.error_code
                    yield end
                else:
                    for event in self.h2.receive_data(raw):
                        if isinstance(event, h2.events.DataReceived) and self.reads:
                            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        yield event
            self.flush()

    def until(self, kind: type[h2.events.Event]) -> list[h2.events.Event]:
        """What comes, up to the first event of that kind."""
        seen = []
        for event in self.events():
            seen.append(event)
            if isinstance(event, kind):
                return seen
        raise AssertionError(f"the connection was closed before {kind.__name__}: {seen}")


def read_response(connected: Connected) -> tuple[int, dict[str, str], bytes]:
    """One HTTP/1.1 response with a Content-Length: status, headers (names in lower case), body."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connected.recv(1)
        assert received, f"closed within a header: {data!r}"
        data += received
    first, *lines = data.decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = b""
    while len(body) < int(headers["content-length"]):
        received = connected.recv(int(headers["content-length"]) - len(body))
        assert received, "closed within a body"
        body += received
    return int(first.split()[1]), headers, body


def refuses_connections(server: Server) -> bool:
    try:
        socket.create_connection(server.address, timeout=20).close()
    except ConnectionRefusedError:
        return True
    return False


def is_closed(connected: socket.socket) -> bool:
    """Whether the server closes the connection without a further byte."""
    try:
        return connected.recv(1) == b""
    except (ConnectionError, ssl.SSLError):
        return True
