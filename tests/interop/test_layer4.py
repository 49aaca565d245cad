"""nginx and HAProxy passing connections through, with the files of deploy/: TLS is between client and server."""

from collections.abc import Iterator
from typing import Any

import pytest

from keswick.client import APIError
from keswick.identity import APIKey
from support.certificates import make
from support.proxies import HAPROXY, NGINX, Front, behind
from support.transport import wait_until

WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "nginx": (NGINX, "stream.conf", {}),
    "haproxy": (HAPROXY, "tcp.cfg", {"proxy_protocol": {"from": ["127.0.0.0/8"]}}),
}


@pytest.fixture(scope="module", params=WAYS)
def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    program, name, section = WAYS[request.param]
    with behind(program, name, tmp_path_factory.mktemp(request.param), servers=3, **section) as front:
        yield front


@pytest.mark.parametrize("http2", [True, False])
def test_a_client_is_known_by_its_own_certificate(front: Front, http2: bool) -> None:
    somebody = APIKey.generate()
    name = f"http2-{http2}"
    with front.client(http2=http2) as client, front.client(somebody.text, http2=http2) as other:
        client.create_key(name)
        for _ in range(5):
            made = client.generate_key(name)
            assert client.decrypt(name, made.ciphertext) == made.plaintext
            assert other.describe_self()[0].identity == somebody.identity
            with pytest.raises(APIError, match="insufficient permissions"):
                other.generate_key(name)


def test_the_audit_log_knows_the_address_of_a_client_when_the_proxy_tells_it(front: Front) -> None:
    caller = front.caller(make("ed25519", eku=["client"]), source="127.0.0.9")
    path = "/v1/key/describe/where-from"
    assert caller.call("GET", path).status == 403
    wait_until(lambda: front.events(path))
    request = front.events(path)[0]["request"]
    assert request["identity"] == caller.identity
    assert request["ip"] == ("127.0.0.9" if front.proxy.config.name == "tcp.cfg" else "127.0.0.1")
    assert "via" not in request


def test_a_live_log_arrives_line_by_line(front: Front) -> None:
    with front.client() as client, client.audit_log() as log:
        for _ in range(3):
            client.version()  # over the same connection, so from the same server
            assert next(event for event in log if event.path == "/version").status == 200
