"""A TLS proxy of a few lines: it forwards what a test says over one kept connection, HTTP/1.1 or HTTP/2.

with forwarding(server.port, pair, tmp_path, http="2") as proxy:
    answer = proxy.ask("/v1/identity/self/describe", certificate_header(client))
"""

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import h2.events

from support.api import Answer
from support.certificates import Pair
from support.transport import Http2, read_response

HEADER = "X-Tls-Client-Cert"

Field = tuple[str, str]
"""A header line."""


def escaped(pair: Pair) -> str:
    """The certificate as nginx's `$ssl_client_escaped_cert` has it."""
    return quote(pair.cert_pem.decode(), safe="")


def certificate_header(pair: Pair) -> Field:
    return HEADER, escaped(pair)


class Proxy:
    """One connection to a server, kept."""

    def ask(self, path: str, *fields: Field, method: str = "GET", body: bytes = b"") -> Answer:
        """Forward one request with these header lines."""
        (answer,) = self.ask_all([(path, fields)], method=method, body=body)
        return answer

    def ask_all(
        self, requests: Sequence[tuple[str, Sequence[Field]]], *, method: str = "GET", body: bytes = b""
    ) -> list[Answer]:
        """Send all requests before the first answer is read: pipelined, or as many streams. Few enough to be sent
        without reading."""
        raise NotImplementedError


class _Http1(Proxy):
    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def ask_all(
        self, requests: Sequence[tuple[str, Sequence[Field]]], *, method: str = "GET", body: bytes = b""
    ) -> list[Answer]:
        sent = b""
        for path, fields in requests:
            lines = (("Host", "localhost"), ("Content-Length", str(len(body))), *fields)
            header = "".join(f"{name}: {value}\r\n" for name, value in lines)
            sent += f"{method} {path} HTTP/1.1\r\n{header}\r\n".encode("latin-1") + body
        self._socket.sendall(sent)
        return [Answer(*read_response(self._socket)) for _ in requests]


class _Http2(Proxy):
    def __init__(self, connected: socket.socket) -> None:
        self._http2 = Http2(connected)

    def ask_all(
        self, requests: Sequence[tuple[str, Sequence[Field]]], *, method: str = "GET", body: bytes = b""
    ) -> list[Answer]:
        connection = self._http2.h2
        streams = []
        for path, fields in requests:
            streams.append(stream := connection.get_next_available_stream_id())
            line = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "localhost")]
            lower = [(name.lower(), value) for name, value in fields]
            connection.send_headers(stream, line + lower, end_stream=not body)
            if body:
                connection.send_data(stream, body, end_stream=True)
        self._http2.flush()
        headers: dict[int, dict[str, str]] = {}
        bodies = dict.fromkeys(streams, b"")
        waiting = set(streams)
        for event in self._http2.events():
            match event:
                case h2.events.ResponseReceived():
                    headers[event.stream_id] = {str(name): str(value) for name, value in event.headers}
                case h2.events.DataReceived():
                    bodies[event.stream_id] += event.data
                case h2.events.StreamEnded():
                    waiting.discard(event.stream_id)
                case h2.events.StreamReset():
                    raise ConnectionResetError(f"stream {event.stream_id} was reset")
            if not waiting:
                break
        if waiting:
            raise ConnectionResetError("the server closed the connection")
        return [Answer(int(headers[stream][":status"]), headers[stream], bodies[stream]) for stream in streams]


@contextmanager
def forwarding(port: int, pair: Pair, folder: Path, *, http: str = "1.1") -> Iterator[Proxy]:
    """A proxy with that certificate, connected to the server at the port."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(*pair.write(folder, f"proxy-{pair.certificate.serial_number:x}"))
    context.set_alpn_protocols(["h2" if http == "2" else "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connected,
    ):
        yield _Http2(connected) if http == "2" else _Http1(connected)
