"""The present API, call by call, against a running server.

Statuses, headers and bodies are held byte for byte where clients compare them.
"""

import base64
import json
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from keswick.crypto import SecretKey
from keswick.server.routes import ROUTES, Route
from support.api import Caller, new_pair
from support.server import RunningServer, start_server

SERVED = [route for route in ROUTES if not route.is_optional]
ALLOWED = ["/v1/key/*", "/v1/log/*", "/v1/policy/*", "/v1/identity/*"]
INVALID = "is empty, too long or contains invalid characters"
FORBIDDEN = "not authorized: insufficient permissions"
NOT_AUTHENTIC = "decryption failed: ciphertext is not authentic"
BAD_BODY = "invalid request body"
DENIED = ["/v1/key/delete/keep*", "/v1/key/*/secret-*"]
OLD_NAMES = ("an old name", "v1.2", "ünïcode")


@dataclass
class Cast:
    """A running server and who calls it."""

    server: RunningServer
    folder: Path
    admin: Caller
    app: Caller
    stranger: Caller


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    folder = tmp_path_factory.mktemp("api")
    pairs = [new_pair() for _ in ("admin", "app", "stranger")]
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    for name in OLD_NAMES:
        (keys / name).write_text('{"bytes":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}')
    (keys / "broken").write_text("")
    admin, app, _ = (Caller(0, pair, folder).identity for pair in pairs)
    config: dict[str, Any] = {
        "admin": {"identity": admin},
        "policy": {
            "app": {"allow": ALLOWED, "deny": DENIED, "identities": [app]},
            "nobody": {"allow": ["/v1/status"]},
        },
        "keys": [{"name": "predefined"}],
        "keystore": {"fs": {"path": str(keys)}},
        "log": {"error": "on", "audit": "on"},
    }
    with start_server(folder, **config) as server:
        cast = Cast(server, folder, *(Caller(server.port, pair, folder) for pair in pairs))
        assert cast.admin.call("PUT", "/v1/key/create/k").status == 200
        yield cast


# --- routing and the order of checks ---


def test_unknown_path_is_not_found_before_anything_else(cast: Cast) -> None:
    for caller in (cast.admin, cast.stranger):
        answer = caller.call("GET", "/v1/nothing")
        assert (answer.status, answer.body) == (404, b"404 page not found\n")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/v1/key/create", "/v1/key/create/"),
        ("/v1/key/create//x", "/v1/key/create/x"),
        ("/v1/key/create/../delete/x", "/v1/key/delete/x"),
        ("/v1/key/create/a%2F..%2Fb", "/v1/key/create/b"),
        ("/v1//status?a=b", "/v1/status?a=b"),
        ("/v1/key/list/.", "/v1/key/list"),
    ],
)
def test_unclean_paths_are_sent_to_the_clean_form(cast: Cast, path: str, location: str) -> None:
    answer = cast.stranger.call("PUT", path)
    assert (answer.status, answer.headers["location"], answer.body) == (307, location, b"")
    assert cast.stranger.call("GET", path).headers["content-type"] == "text/html; charset=utf-8"


def test_nul_in_a_path_is_refused(cast: Cast) -> None:
    assert cast.admin.call("PUT", "/v1/key/create/a%00b").status == 400


@pytest.mark.parametrize("route", SERVED, ids=lambda route: route.path)
def test_a_wrong_method_names_the_right_one_even_to_strangers(cast: Cast, route: Route) -> None:
    path = route.path + "x" if route.path.endswith("/") else route.path
    answer = cast.stranger.call("PATCH", path)
    assert answer.status == 405
    assert answer.headers["accept"] == route.method
    assert answer.message == f"received method 'PATCH' expected '{route.method}'"


def test_post_is_taken_where_put_is(cast: Cast) -> None:
    assert cast.admin.call("POST", "/v1/key/generate/k", {}).status == 200
    assert cast.admin.call("HEAD", "/v1/key/describe/k").status == 405


@pytest.mark.parametrize(
    ("who", "method", "path", "body", "status", "message"),
    [
        # authorisation comes before the name, the name before the body, the body before the key
        ("stranger", "PUT", "/v1/key/create/bad%20name", None, 403, FORBIDDEN),
        ("app", "GET", "/v1/status", None, 403, FORBIDDEN),
        ("app", "DELETE", "/v1/key/delete/keep-me", None, 403, FORBIDDEN),
        ("app", "PUT", "/v1/key/generate/secret-1", {}, 403, FORBIDDEN),
        ("app", "PUT", "/v1/key/create/-x", None, 400, f"key name '-x' {INVALID}"),
        ("admin", "PUT", "/v1/key/create/", None, 400, f"key name '' {INVALID}"),
        ("admin", "PUT", "/v1/key/create/a%2Fb", None, 400, f"key name 'a/b' {INVALID}"),
        ("admin", "PUT", "/v1/key/encrypt/nope", b"{bad", 400, BAD_BODY),
        ("admin", "PUT", "/v1/key/encrypt/nope", {}, 404, "key does not exist"),
        ("admin", "PUT", "/v1/key/encrypt/no%20pe", {}, 400, f"key name 'no pe' {INVALID}"),
        ("admin", "PUT", "/v1/key/create/k", None, 400, "key already exists"),
        ("admin", "DELETE", "/v1/key/delete/nope", None, 404, "key does not exist"),
        ("admin", "GET", "/v1/key/describe/nope", None, 404, "key does not exist"),
        ("admin", "GET", "/v1/key/describe/broken", None, 502, "failed to read key"),
        ("admin", "GET", "/v1/key/list/a*b", None, 400, "listing pattern 'a*b' is empty, too long or is invalid"),
        ("admin", "PUT", "/v1/key/encrypt/k", b"", 400, BAD_BODY),
        ("admin", "PUT", "/v1/key/decrypt/k", b"[]", 400, BAD_BODY),
        ("admin", "PUT", "/v1/key/decrypt/k", {"ciphertext": "AA"}, 400, BAD_BODY),
        ("admin", "PUT", "/v1/key/decrypt/k", {"ciphertext": "AA__"}, 400, BAD_BODY),
        ("admin", "PUT", "/v1/key/decrypt/k", {"ciphertext": 7}, 400, BAD_BODY),
        ("admin", "PUT", "/v1/key/decrypt/k", {}, 400, NOT_AUTHENTIC),
        ("admin", "PUT", "/v1/key/decrypt/k", {"ciphertext": "A" * 88}, 400, NOT_AUTHENTIC),
        ("admin", "PUT", "/v1/key/hmac/an%20old%20name", {"message": ""}, 409, "key does not support HMAC"),
        ("admin", "PUT", "/v1/key/import/i", b"", 400, "invalid import key request body"),
        ("admin", "PUT", "/v1/key/import/i", {"key": "AAAA"}, 406, "algorithm '' is not supported"),
        ("admin", "PUT", "/v1/key/import/i", {"cipher": "aes256"}, 406, "algorithm 'aes256' is not supported"),
        ("admin", "PUT", "/v1/key/import/i", {"key": "AAAA", "cipher": "AES256"}, 406, "invalid key size for 'AES256'"),
        ("admin", "GET", "/v1/policy/read/nope", None, 404, "policy does not exist"),
        ("admin", "GET", "/v1/policy/describe/_", None, 400, f"policy name '_' {INVALID}"),
        ("admin", "GET", "/v1/identity/describe/nope", None, 404, "identity does not exist"),
        ("admin", "GET", "/v1/identity/describe/a%20b", None, 400, f"identity 'a b' {INVALID}"),
    ],
)  # fmt: skip
def test_refusals(cast: Cast, who: str, method: str, path: str, body: object, status: int, message: str) -> None:
    answer = getattr(cast, who).call(method, path, body)
    assert (answer.status, answer.message) == (status, message)
    assert answer.headers["content-type"] == "application/json"
    assert answer.body == b'{"message":' + json.dumps(message).encode() + b"\n}"


# --- sealing ---


def test_a_data_key_opens_again_only_with_its_context(cast: Cast) -> None:
    context = base64.b64encode(b"bucket/object").decode()
    made = cast.app.call("PUT", "/v1/key/generate/k", {"context": context}).json
    assert len(base64.b64decode(made["plaintext"])) == 32
    assert len(base64.b64decode(made["ciphertext"])) == 32 + 44
    opened = cast.app.call("PUT", "/v1/key/decrypt/k", {"ciphertext": made["ciphertext"], "context": context})
    assert opened.body == b'{"plaintext":"' + made["plaintext"].encode() + b'"}\n'
    assert cast.app.call("PUT", "/v1/key/decrypt/k", {"ciphertext": made["ciphertext"]}).status == 400


def test_an_encoded_route_is_the_same_route(cast: Cast) -> None:
    made = cast.app.call("PUT", "/v1/key/generat%65/k", {"context": "QUFB"}).json
    sealed = {"ciphertext": made["ciphertext"], "context": "QUFB"}
    assert cast.app.call("PUT", "/v1/key/decrypt/k", sealed).json["plaintext"] == made["plaintext"]
    assert cast.app.call("PUT", "/v1/key/decrypt/k", {"ciphertext": made["ciphertext"]}).status == 400


def test_a_query_of_raw_bytes_is_sent_back_encoded(cast: Cast) -> None:
    request = "PUT /v1//status?a=\u20ac HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    with (
        socket.create_connection(("127.0.0.1", cast.server.port)) as plain,
        cast.app.context.wrap_socket(plain) as secure,
    ):
        secure.sendall(request)
        head = secure.recv(65536).decode("ascii").lower()
    assert head.startswith("http/1.1 307")
    assert "location: /v1/status?a=%" in head


def test_generate_needs_no_body(cast: Cast) -> None:
    answer = cast.app.call("PUT", "/v1/key/generate/k")
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"


def test_empty_plaintext_comes_back_as_an_empty_text(cast: Cast) -> None:
    sealed = cast.app.call("PUT", "/v1/key/encrypt/k", {}).json["ciphertext"]
    assert cast.app.call("PUT", "/v1/key/decrypt/k", {"ciphertext": sealed}).body == b'{"plaintext":""}\n'


@pytest.mark.parametrize(
    "body",
    [
        b'{"PlainText":"aGk=","other":[1,{"a":null}],"version":"v1"}',
        b'  {"plaintext":"aGk=","context":null} trailing garbage',
        b'{"plaintext":"a\\nG\\r\\nk="}',
    ],
)
def test_bodies_are_read_leniently(cast: Cast, body: bytes) -> None:
    sealed = cast.app.call("PUT", "/v1/key/encrypt/k", body).json["ciphertext"]
    assert cast.app.call("PUT", "/v1/key/decrypt/k", {"ciphertext": sealed}).json["plaintext"] == "aGk="


def test_bulk_decrypt_answers_in_order_or_not_at_all(cast: Cast) -> None:
    sealed = [cast.app.call("PUT", "/v1/key/encrypt/k", {"plaintext": text}).json for text in ("QQ==", "Qg==")]
    answer = cast.admin.call("POST", "/v1/key/bulk/decrypt/k", sealed)
    assert answer.json == [{"plaintext": "QQ=="}, {"plaintext": "Qg=="}]
    assert cast.admin.call("POST", "/v1/key/bulk/decrypt/k", [*sealed, {"ciphertext": ""}]).status == 400
    assert cast.admin.call("POST", "/v1/key/bulk/decrypt/k", [{}] * 1001).message == "too many ciphertexts"


def test_hmac_is_the_same_for_the_same_message(cast: Cast) -> None:
    first, second, other = (
        cast.app.call("PUT", "/v1/key/hmac/k", {"message": message}).json["hmac"]
        for message in ("QQ==", "QQ==", "Qg==")
    )
    assert first == second != other
    assert len(base64.b64decode(first)) == 32


# --- keys ---


def test_create_describe_delete(cast: Cast) -> None:
    made = cast.app.call("PUT", "/v1/key/create/short-lived")
    assert (made.status, made.body, made.headers["content-length"]) == (200, b"", "0")
    assert "content-type" not in made.headers
    told = cast.app.call("GET", "/v1/key/describe/short-lived").json
    assert (told["name"], told["algorithm"], told["created_by"]) == ("short-lived", "AES256", cast.app.identity)
    sealed = cast.app.call("PUT", "/v1/key/encrypt/short-lived", {"plaintext": "QQ=="}).json
    assert cast.app.call("DELETE", "/v1/key/delete/short-lived").status == 200
    assert cast.app.call("PUT", "/v1/key/decrypt/short-lived", sealed).status == 404


@pytest.mark.parametrize(
    ("body", "algorithm"),
    [
        ({"key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "cipher": "ChaCha20"}, "ChaCha20"),
        ({"key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "cipher": "AES256-GCM_SHA256"}, "AES256"),
        ({"bytes": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}, "AES256"),
        ({"bytes": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "algorithm": "XCHACHA20-POLY1305"}, "ChaCha20"),
    ],
)
def test_import_takes_the_fields_of_all_times(cast: Cast, body: dict[str, str], algorithm: str) -> None:
    assert cast.admin.call("PUT", "/v1/key/import/imported", body).status == 200
    try:
        assert cast.admin.call("GET", "/v1/key/describe/imported").json["algorithm"] == algorithm
    finally:
        assert cast.admin.call("DELETE", "/v1/key/delete/imported").status == 200


def test_predefined_keys_belong_to_the_admin(cast: Cast) -> None:
    assert cast.app.call("GET", "/v1/key/describe/predefined").json["created_by"] == cast.admin.identity


@pytest.mark.parametrize("path", ["an%20old%20name", "v1.2", "%C3%BCn%C3%AFcode"])
def test_keys_with_names_of_old_are_found_but_not_made(cast: Cast, path: str) -> None:
    assert cast.admin.call("GET", f"/v1/key/describe/{path}").json["created_at"] == "0001-01-01T00:00:00Z"
    sealed = cast.admin.call("PUT", f"/v1/key/encrypt/{path}", {"plaintext": "QQ=="}).json
    assert cast.admin.call("PUT", f"/v1/key/decrypt/{path}", sealed).json == {"plaintext": "QQ=="}
    assert cast.admin.call("PUT", f"/v1/key/create/{path}x").status == 400


def test_a_key_that_another_server_deleted_and_that_is_made_again_is_the_new_one(cast: Cast) -> None:
    for _ in range(2):
        assert cast.admin.call("PUT", "/v1/key/create/again").status == 200
        sealed = cast.admin.call("PUT", "/v1/key/generate/again").json["ciphertext"]
        stored = SecretKey.decode((cast.folder / "keys" / "again").read_bytes())
        assert stored.decrypt(base64.b64decode(sealed), b"")
        (cast.folder / "keys" / "again").unlink()  # as another server does


def test_lists_are_complete_beyond_a_page(cast: Cast) -> None:
    keys = cast.folder / "keys"
    template = (keys / "k").read_bytes()
    names = [f"many-{number:04}" for number in range(2100)]
    for name in names:
        (keys / name).write_bytes(template)
    found, prefix, pages = [], "many-*", 0
    while prefix:
        page = cast.app.call("GET", f"/v1/key/list/{prefix}").json
        found += page["names"]
        prefix, pages = page.get("continue_at", ""), pages + 1
    assert (found, pages) == (names, 3)
    assert cast.app.call("GET", "/v1/key/list/many-00*").json["names"] == names[:100]
    assert cast.app.call("GET", "/v1/key/list/none-such").body == b'{"names":[]}\n'
    lines = cast.admin.call("GET", "/v1/key/list/", accept="application/x-ndjson")
    assert lines.headers["content-type"] == "application/x-ndjson"
    listed = [json.loads(line)["name"] for line in lines.body.splitlines()]
    assert set(names) | set(OLD_NAMES) <= set(listed)
    assert listed == sorted(listed)


# --- policies, identities ---


def test_policies_are_told_as_objects_of_patterns(cast: Cast) -> None:
    told = cast.admin.call("GET", "/v1/policy/read/app").json
    assert told["allow"] == {pattern: {} for pattern in ALLOWED}
    assert told["deny"] == {pattern: {} for pattern in DENIED}
    assert told["created_by"] == cast.admin.identity
    assert set(cast.admin.call("GET", "/v1/policy/describe/app").json) == {"name", "created_at", "created_by"}
    assert "deny" not in cast.admin.call("GET", "/v1/policy/read/nobody").json
    assert cast.admin.call("GET", "/v1/policy/list/ap*").json == {"names": ["app"], "continue_at": ""}
    assert cast.admin.call("GET", "/v1/policy/list/").json["names"] == ["app", "nobody"]
    assert cast.admin.call("GET", "/v1/policy/list/x").json["names"] == []


def test_identities(cast: Cast) -> None:
    assert cast.app.call("GET", f"/v1/identity/describe/{cast.app.identity}").json["policy"] == "app"
    assert cast.app.call("GET", f"/v1/identity/describe/{cast.admin.identity}").json["admin"] is True
    listed = cast.app.call("GET", "/v1/identity/list/").json["identities"]
    assert listed == sorted([cast.admin.identity, cast.app.identity])


def test_everybody_learns_who_they_are(cast: Cast) -> None:
    assert cast.admin.call("GET", "/v1/identity/self/describe").json["admin"] is True
    app = cast.app.call("GET", "/v1/identity/self/describe").json
    assert (app["identity"], app["policy"]["name"]) == (cast.app.identity, "app")
    assert app["policy"]["allow"] == {pattern: {} for pattern in ALLOWED}
    stranger = cast.stranger.call("GET", "/v1/identity/self/describe").json
    assert stranger["identity"] == cast.stranger.identity
    assert "policy" not in stranger


# --- system ---


def test_version_needs_no_permission(cast: Cast) -> None:
    answer = cast.stranger.call("GET", "/version")
    assert set(answer.json) == {"version", "commit"}
    assert b"\\u003cunknown\\u003e" in answer.body


def test_ready_status_and_the_list_of_routes(cast: Cast) -> None:
    assert cast.admin.call("GET", "/v1/ready").body == b""
    status = cast.admin.call("GET", "/v1/status").json
    assert status["keystore_latency"] >= 1
    assert status["os"] == "linux"
    assert status["uptime"] >= 0
    served = cast.admin.call("GET", "/v1/api").json
    assert {"method": "PUT", "path": "/v1/key/encrypt/", "max_body": 1000000, "timeout": 15} in served
    assert len(served) == len(SERVED)


def test_however_many_ask_for_readiness_the_key_store_is_asked_once_a_second(cast: Cast) -> None:
    def asked() -> int:
        metrics = cast.admin.call("GET", "/v1/metrics").body.decode()
        return int(metrics.partition('kes_keystore_request_duration_seconds_count{operation="status"} ')[2].split()[0])

    before, begin = asked(), time.monotonic()
    for _ in range(100):
        assert cast.admin.call("GET", "/v1/ready").status == 200
    assert asked() - before <= time.monotonic() - begin + 2  # one of them is the watch's


def test_metrics_count_what_was_answered(cast: Cast) -> None:
    def successes() -> int:
        text = cast.admin.call("GET", "/v1/metrics").body.decode()
        line = next(line for line in text.splitlines() if line.startswith('kes_http_request_success{code="200"}'))
        return int(line.split()[1])

    before = successes()
    for _ in range(5):
        cast.app.call("PUT", "/v1/key/generate/k")
    assert successes() == before + 6  # the five, and the first look itself


# --- live logs ---


def _next_event(lines: Iterator[str], path: str) -> dict[str, dict[str, object]]:
    for line in lines:
        event: dict[str, dict[str, object]] = json.loads(line)
        if event["request"]["path"] == path:
            return event
    raise AssertionError("the stream ended")


@pytest.mark.parametrize("http2", [False, True])
def test_the_audit_stream_shows_every_request(cast: Cast, http2: bool) -> None:
    path = "/v1/key/create/refused"
    with (
        httpx.Client(verify=cast.admin.context, http1=not http2, http2=http2, timeout=20) as client,
        client.stream("GET", f"{cast.server.endpoint}/v1/log/audit") as stream,
    ):
        assert stream.headers["content-type"] == "application/x-ndjson"
        assert stream.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        lines = stream.iter_lines()
        cast.stranger.call("PUT", path)
        event = _next_event(lines, path)
        assert event["request"] == {"ip": "127.0.0.1", "path": path, "identity": cast.stranger.identity}
        assert event["response"]["code"] == 403
        assert isinstance(event["response"]["time"], int)
        for path, status in (("/v1/elsewhere", 404), ("/v1/key//x", 307), ("/v1/key/create/\0", 400)):
            cast.app.call("PUT", path.replace("\0", "%00"))
            event = _next_event(lines, path)
            assert event["response"]["code"] == status
            assert event["request"]["identity"] == cast.app.identity


def test_what_the_transport_refuses_is_recorded_and_does_nothing(cast: Cast) -> None:
    path = "/v1/key/create/far-too-large"
    with (
        httpx.Client(verify=cast.admin.context, timeout=20) as client,
        client.stream("GET", f"{cast.server.endpoint}/v1/log/audit") as stream,
        socket.create_connection(("127.0.0.1", cast.server.port)) as plain,
        cast.admin.context.wrap_socket(plain) as secure,
    ):
        secure.sendall(f"PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n".encode())
        assert secure.recv(65536).startswith(b"HTTP/1.1 413 ")
        assert _next_event(stream.iter_lines(), path)["response"]["code"] == 413
    assert cast.admin.call("GET", "/v1/key/describe/far-too-large").status == 404
    assert 'kes_http_request_error{code="413"} 1' in cast.admin.call("GET", "/v1/metrics").body.decode()


def test_the_error_stream_shows_why_a_key_could_not_be_read(cast: Cast) -> None:
    with (
        httpx.Client(verify=cast.admin.context, timeout=20) as client,
        client.stream("GET", f"{cast.server.endpoint}/v1/log/error") as stream,
    ):
        lines = stream.iter_lines()
        assert cast.admin.call("GET", "/v1/key/describe/broken").status == 502
        message = json.loads(next(lines))["message"]
        assert "level=ERROR" in message
        assert "req.path=/v1/key/describe/broken" in message


def test_many_followers_and_a_slow_one_do_not_slow_the_server(cast: Cast) -> None:
    clients = [Caller(cast.server.port, new_pair(), cast.folder) for _ in range(2)]
    url = f"{cast.server.endpoint}/v1/log/audit"
    with httpx.Client(verify=cast.admin.context, timeout=20, limits=httpx.Limits(max_connections=None)) as client:
        streams = [client.send(client.build_request("GET", url), stream=True) for _ in range(20)]  # none is read
        for number in range(500):
            assert clients[number % 2].call("GET", "/version").status == 200
        for stream in streams:
            stream.close()
    assert cast.admin.call("GET", "/v1/ready").status == 200
