"""Servers of bare sockets, which do to each connection what a test says.

with listening(lambda connection: connection.sendall(b"SSH-2.0-x\\r\\n")) as port: ...
with listening(tls(pair, answer_with(b"HTTP/1.1 200 OK\\r\\n\\r\\n"))) as port: ...
"""

import random
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from support.certificates import Pair

Script = Callable[[socket.socket], object]


def free_port() -> int:
    """A port of 127.0.0.1 where nobody listens, for a program that has to be told one.

    It lies below those that outgoing connections get, so that none of them takes it before the program does, or while
    the program is started anew.
    """
    while True:
        port = random.randrange(12_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port


@contextmanager
def listening(script: Script, *, host: str = "127.0.0.1") -> Iterator[int]:
    """A port where each connection gets a thread that runs `script` and then closes it."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=300)
    connections: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # what clients do to it is their test
            script(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(20)
                # What is sent goes out before a close, which drops what still waits if the client's data is unread.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def tls(
    pair: Pair,
    script: Script,
    *,
    client_ca: Pair | None = None,
    version: ssl.TLSVersion | None = None,
    alpn: Sequence[str] = (),
    chain: Sequence[Pair] = (),
) -> Script:
    """The same after a handshake. With `client_ca` clients must show a certificate that chains to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    if alpn:
        context.set_alpn_protocols(list(alpn))
    with tempfile.TemporaryDirectory() as folder:
        context.load_cert_chain(*pair.write(Path(folder), chain=chain))
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=client_ca.cert_pem.decode())

    def run(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            script(secured)

    return run


def read_request(connection: socket.socket) -> bytes:
    """The header of one HTTP/1.1 request; empty when the client has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            break
        data += received
    return data


def answer_with(answer: bytes) -> Script:
    """Reads a request, and answers with these bytes."""

    def script(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(answer)

    return script


def until_closed(connection: socket.socket) -> None:
    """Says nothing for as long as the client is there."""
    while connection.recv(65536):
        pass
