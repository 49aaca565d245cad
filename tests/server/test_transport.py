"""What a configuration says of the transport reaches it: PROXY headers and bounds, on both listeners."""

import http.client
import ipaddress
import json
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from keswick.identity import identity_of
from support.api import Answer, new_pair
from support.certificates import Pair
from support.proxy import forwarding
from support.server import RunningServer, start_server
from support.transport import read_response, wait_until

REQUEST = b"GET /v1/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"


def proxy_header(client: str) -> bytes:
    """A PROXY header, version 2, of a connection from `client`."""
    source = ipaddress.ip_address(client)
    addresses = source.packed + (b"\0" * len(source.packed)) + (4711).to_bytes(2) + (7373).to_bytes(2)
    family = b"\x11" if source.version == 4 else b"\x21"
    return b"\r\n\r\n\0\r\nQUIT\n\x21" + family + len(addresses).to_bytes(2) + addresses


def ready(port: int, header: bytes, pair: Pair | None, folder: Path) -> Answer | None:
    """What the server says over a connection that begins with these bytes; None when it ends the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection, suppress(OSError):
        connection.sendall(header)
        if pair is not None:
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.load_cert_chain(*pair.write(folder))
            connection = context.wrap_socket(connection)
        with connection, suppress(AssertionError):
            connection.sendall(REQUEST)
            return Answer(*read_response(connection))
    return None


def with_admin(**config: Any) -> tuple[dict[str, Any], Pair]:
    pair = new_pair()
    return {"admin": {"identity": identity_of(pair.public_key_der)}, "log": {"audit": "on"}, **config}, pair


def audited(server: RunningServer) -> list[str]:
    return [json.loads(line)["request"]["ip"] for line in server.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("client", ["192.0.2.7", "2001:db8::7"])
def test_a_proxy_header_tells_the_client(tmp_path: Path, client: str) -> None:
    config, pair = with_admin(proxy_protocol={"from": ["10.0.0.0/8", "127.0.0.1"], "timeout": "2s"})
    with start_server(tmp_path, **config) as server:
        answer = ready(server.port, proxy_header(client), pair, tmp_path)
        assert answer is not None
        assert answer.status == 200
        wait_until(lambda: audited(server) == [client])
        assert ready(server.port, b"", pair, tmp_path) is None  # from there it is required


def test_a_proxy_header_from_elsewhere_ends_the_connection(tmp_path: Path) -> None:
    config, pair = with_admin(proxy_protocol={"from": ["10.0.0.0/8"]})
    with start_server(tmp_path, **config) as server:
        assert ready(server.port, proxy_header("192.0.2.7"), pair, tmp_path) is None
        answer = ready(server.port, b"", pair, tmp_path)
        assert answer is not None
        assert answer.status == 200
        wait_until(lambda: audited(server) == ["127.0.0.1"])


def test_the_second_listener_has_proxy_headers_of_its_own(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    metrics = {"address": f"127.0.0.1:{port}", "proxy_protocol": {"from": ["127.0.0.0/8"]}}
    config, pair = with_admin(metrics=metrics)
    with start_server(tmp_path, **config) as server:
        assert ready(port, b"", None, tmp_path) is None
        server.wait_for("no PROXY header of version 2, which is required", stream="stderr")
        answer = ready(port, proxy_header("192.0.2.7"), None, tmp_path)
        assert answer is not None
        assert answer.status == 200
        assert ready(server.port, b"", pair, tmp_path) is not None


def test_bounds_are_those_of_the_file(tmp_path: Path) -> None:
    config, pair = with_admin(limits={"header_bytes": 4096, "headers": 20})
    with start_server(tmp_path, **config) as server:
        with forwarding(server.port, pair, tmp_path) as connection:
            assert connection.ask("/version", ("X-Long", "x" * 3000)).status == 200
            assert connection.ask("/version", ("X-Long", "x" * 6000)).status == 431
        with forwarding(server.port, pair, tmp_path) as connection:
            assert connection.ask("/version", *[("X-Many", "x")] * 25).status == 431


def test_bounds_of_the_file_hold_on_the_second_listener(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with start_server(tmp_path, metrics={"address": f"127.0.0.1:{port}"}, limits={"headers": 10}):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/v1/ready", headers={f"X-{number}": "x" for number in range(20)})
        assert connection.getresponse().status == 431
        connection.close()


@pytest.mark.parametrize(
    ("key", "change"), [("limits", {"connections": 50}), ("proxy_protocol", {"from": ["10.0.0.0/8"]})]
)
def test_changes_wait_for_a_new_start(tmp_path: Path, key: str, change: dict[str, Any]) -> None:
    config, pair = with_admin()
    with start_server(tmp_path, **config) as server:
        server.reload(
            f"a new '{key}' takes effect when the server is started again", stream="stderr", **config, **{key: change}
        )
        assert ready(server.port, b"", pair, tmp_path) is not None
