"""A proxy for HTTPS, as `HTTPS_PROXY` names one, that leads well-known hosts to services of this machine.

with ConnectProxy({"login.microsoftonline.com": entra.port}) as proxy:
    ... HTTPS_PROXY=proxy.endpoint ...
"""

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from http.client import parse_headers
from socketserver import StreamRequestHandler, ThreadingTCPServer
from types import TracebackType
from typing import Self


class ConnectProxy:
    """Listens on a free port of 127.0.0.1. `ports`: by host name; any other host is refused."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.hosts: list[str] = []
        """To which connections were asked for."""
        self.logins: list[str | None] = []
        """What was shown with each."""
        proxy = self

        class Handler(StreamRequestHandler):
            def handle(self) -> None:
                method, target, _ = self.rfile.readline().decode().split()
                headers = parse_headers(self.rfile)
                host = target.rpartition(":")[0]
                proxy.hosts.append(host)
                proxy.logins.append(headers["Proxy-Authorization"])
                if method != "CONNECT" or host not in ports:
                    self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
                    return
                with socket.create_connection(("127.0.0.1", ports[host])) as upstream:
                    self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    back = threading.Thread(target=_copy, args=(upstream, self.connection), daemon=True)
                    back.start()
                    _copy(self.connection, upstream)
                    back.join()

        class Server(ThreadingTCPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
