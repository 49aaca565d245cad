"""What calls send, and what comes back through them, over HTTP/1.1 from a scripted server."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from keswick.client import API, Client, DataKey, KeyInfo, Policy, PolicyInfo, Version
from keswick.identity import APIKey
from support.fake_server import Answer, fake_server

API_KEY = APIKey.generate()


def answers(table: dict[str, object]) -> Callable[[str, str], Answer]:
    """A server that answers a path with a JSON value."""
    return lambda method, path: Answer(body=json.dumps(table[path]).encode() + b"\n")


def test_key_calls_are_sent_as_the_servers_read_them(tmp_path: Path) -> None:
    replies = {
        "/v1/key/create/k": {},
        "/v1/key/import/k": {},
        "/v1/key/delete/k": {},
        "/v1/key/describe/k": {"name": "k", "algorithm": "AES256", "created_at": "2026-01-02T03:04:05.6Z"},
        "/v1/key/encrypt/k": {"ciphertext": "Yw=="},
        "/v1/key/decrypt/k": {"plaintext": None},
        "/v1/key/generate/k": {"plaintext": base64.b64encode(b"p" * 32).decode(), "ciphertext": "Yw=="},
        "/v1/key/hmac/k": {"hmac": base64.b64encode(b"h" * 32).decode()},
    }
    with fake_server(tmp_path, answers(replies)) as server:
        with Client(server.endpoint, api_key=API_KEY, ca_file=server.ca_file) as client:
            client.create_key("k")
            client.import_key("k", b"key", "ChaCha20")
            client.delete_key("k")
            assert client.describe_key("k") == KeyInfo("k", "AES256", "2026-01-02T03:04:05.6Z", "")
            assert client.encrypt("k", b"p", b"x") == b"c"
            assert client.decrypt("k", b"c") == b""
            assert client.generate_key("k") == DataKey(b"p" * 32, b"c")
            assert client.hmac("k", b"m") == b"h" * 32
        assert server.calls == [
            "POST /v1/key/create/k",
            'POST /v1/key/import/k {"key": "a2V5", "cipher": "ChaCha20", '
            '"bytes": "a2V5", "algorithm": "XCHACHA20-POLY1305"}',
            "DELETE /v1/key/delete/k",
            "GET /v1/key/describe/k",
            'POST /v1/key/encrypt/k {"plaintext": "cA==", "context": "eA=="}',
            'POST /v1/key/decrypt/k {"ciphertext": "Yw==", "context": ""}',
            'POST /v1/key/generate/k {"context": ""}',
            'POST /v1/key/hmac/k {"message": "bQ=="}',
        ]
        assert len(server.peers) == 1  # the connection is kept


def test_names_are_one_percent_encoded_segment(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server, Client(server.endpoint, ca_file=server.ca_file) as client:
        client.create_key("a/b ?#%é\udcff")
        client.create_key("...")
        assert server.calls == ["POST /v1/key/create/a%2Fb%20%3F%23%25%C3%A9%FF", "POST /v1/key/create/..."]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/./b", "/a", "a/", "a//b"])
def test_names_that_would_be_another_path_are_not_sent(name: str) -> None:
    client = Client("127.0.0.1:1")
    for call, what in (
        (client.create_key, "key name"),
        (client.describe_policy, "policy name"),
        (client.describe_identity, "identity"),
    ):
        with pytest.raises(ValueError, match=f"{what} '{re.escape(name)}' is empty, too long or contains invalid"):
            call(name)
    with pytest.raises(ValueError, match=r"prefix '\.\./\*' is empty"):
        list(client.list_keys("../"))


def test_lists_are_read_to_the_end(tmp_path: Path) -> None:
    pages = {
        "/v1/key/list/n%2A": {"names": ["n1", "n2"], "continue_at": "n3~1"},
        "/v1/key/list/n3~1": {"names": ["n3"], "continue_at": ""},
        "/v1/key/list/%2A": {"names": []},
    }
    with fake_server(tmp_path, answers(pages)) as server, Client(server.endpoint, ca_file=server.ca_file) as client:
        assert list(client.list_keys("n")) == list(client.list_keys("n*")) == ["n1", "n2", "n3"]
        assert list(client.list_keys()) == []


def test_identities_policies_and_the_server_itself(tmp_path: Path) -> None:
    me, other = "1" * 64, "2" * 64
    rules = {"allow": {"/v1/key/create/*": {}}, "created_at": "2026-01-01T00:00:00Z", "created_by": me}
    replies: dict[str, object] = {
        "/version": {"version": "1", "commit": "c"},
        "/v1/status": {"version": "1", "os": "linux", "arch": "amd64", "uptime": 7, "keystore_unreachable": True},
        "/v1/ready": {},
        "/v1/api": [{"method": "GET", "path": "/version", "max_body": 0, "timeout": 10}],
        "/v1/policy/describe/p": {"name": "p", "created_at": "2026-01-01T00:00:00Z", "created_by": me},
        "/v1/policy/read/p": {**rules, "name": "p"},
        "/v1/identity/list/%2A": {"identities": [me, other]},
        f"/v1/identity/describe/{other}": {"policy": "p", "created_at": "2026-01-01T00:00:00Z", "created_by": me},
        "/v1/identity/self/describe": {"identity": other, "created_at": "", "policy": {**rules, "name": "p"}},
    }
    with fake_server(tmp_path, answers(replies)) as server, Client(server.endpoint, ca_file=server.ca_file) as client:
        assert client.version() == Version("1", "c")
        status = client.status()
        assert (status.uptime, status.keystore_unreachable, status.num_cpu) == (7, True, 0)
        client.ready()
        assert client.apis() == (API("GET", "/version", 0, 10),)
        assert client.describe_policy("p") == PolicyInfo("p", "2026-01-01T00:00:00Z", me)
        assert client.read_policy("p") == Policy("p", "2026-01-01T00:00:00Z", me, ("/v1/key/create/*",), ())
        assert list(client.list_identities()) == [me, other]
        assert client.describe_identity(other).policy == "p"
        info, policy = client.describe_self()
        assert (info.identity, info.is_admin, info.policy) == (other, False, "p")
        assert policy is not None
        assert policy.created_by == me


def test_a_text_is_not_taken_for_bytes() -> None:
    """It might be sent as it is, and be read as base64."""
    client: Any = Client("127.0.0.1:1")
    for call in (client.encrypt, client.decrypt, client.hmac, client.generate_key, client.import_key):
        with pytest.raises(TypeError, match="bytes-like"):
            call("k", "YWJj")
