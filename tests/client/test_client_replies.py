"""Replies of every generation, and what is no reply of any."""

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.client import APIError, IdentityInfo, ListIncomplete, Policy, UnexpectedReply, calls, replies
from keswick.client.replies import MAX_LINE, Lines, Reply, checked

ME = "1" * 64
KEY = base64.b64encode(bytes(32)).decode()


def reply(value: object, status: int = 200, content_type: str = "application/json") -> Reply:
    body = value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"
    return Reply(status, content_type, body)


# --- lists ---


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-ndjson", b'{"Name":"a"}\n{"Name":"b"}\n'),
        ("application/x-ndjson; charset=utf-8", b'{"name":"a","created_at":""}\n{"name":"b"}\n'),
        ("text/plain", b'["a","b"]\n'),
        ("application/json", b'{"names":["a","b"],"continue_at":""}\n'),
        ("Application/JSON; charset=utf-8", b'{"names":["a","b"]}\n'),
    ],
)
def test_lists_of_every_generation(content_type: str, body: bytes) -> None:
    assert calls.list_policies("").read(Reply(200, content_type, body)) == calls.Page(["a", "b"], None, {})


@pytest.mark.parametrize(
    ("content_type", "body", "policies"),
    [
        ("text/plain", {ME: "p"}, {ME: "p"}),
        ("application/x-ndjson", {"identity": ME, "policy": "p"}, {ME: "p"}),
        ("application/x-ndjson", {"identity": ME, "admin": False, "policy": "p", "created_at": ""}, {ME: "p"}),
        ("application/x-ndjson", {"identity": ME, "admin": True, "created_at": ""}, {}),
        ("application/json", {"identities": [ME], "continue_at": ""}, {}),
    ],
)
def test_identities_of_every_generation(content_type: str, body: object, policies: dict[str, str]) -> None:
    page = calls.list_identities("").read(reply(body, content_type=content_type))
    assert (page.names, page.policies) == ([ME], policies)


@pytest.mark.parametrize(("content_type", "body"), [("", b""), ("application/x-ndjson", b""), ("text/plain", b"{}\n")])
def test_empty_lists_of_every_generation(content_type: str, body: bytes) -> None:
    assert calls.list_identities("").read(Reply(200, content_type, body)).names == []


def test_a_list_goes_on_where_the_server_says() -> None:
    page = calls.list_keys("n").read(reply({"names": ["n1"], "continue_at": "n2~1"}))
    assert page.names == ["n1"]
    assert page.following is not None
    assert page.following.path == "/v1/key/list/n2~1"


def test_a_list_that_cannot_be_continued_is_not_taken_for_whole() -> None:
    first = calls.list_keys("n")
    with pytest.raises(ListIncomplete, match="more names than this server can list"):
        first.read(reply({"names": ["n1"], "continue_at": "n2"}))
    again = reply({"names": ["n1"], "continue_at": "n2~1"})
    second = first.read(again).following
    assert second is not None
    with pytest.raises(ListIncomplete):
        second.read(again)


@pytest.mark.parametrize("body", [b'{"names":[1]}', b'{"names":["a"]', b"", b"null", b"7", b"[[1]]", b"[" * 100_000])
def test_a_list_that_is_none(body: bytes) -> None:
    with pytest.raises(UnexpectedReply, match="is the endpoint right"):
        calls.list_keys("").read(reply(body))


def test_an_error_in_the_middle_of_a_list_is_not_lost() -> None:
    body = b'{"name":"a"}\n{"error":"store is away"}\n'
    with pytest.raises(APIError, match="store is away"):
        calls.list_keys("").read(Reply(200, "application/x-ndjson", body))


# --- policies and identities ---


@pytest.mark.parametrize(
    ("fields", "allow", "deny"),
    [
        ({"allow": {"/a": {}, "/b": {}}, "deny": {"/c": {}}}, ("/a", "/b"), ("/c",)),
        ({"allow": ["/a"], "deny": []}, ("/a",), ()),
        ({"paths": ["/a", "/b"]}, ("/a", "/b"), ()),
        ({"Allow": ["/a"], "Deny": None}, ("/a",), ()),
        ({}, (), ()),
    ],
)
def test_rules_of_every_generation(fields: dict[str, Any], allow: tuple[str, ...], deny: tuple[str, ...]) -> None:
    fields = {**fields, "created_at": "t", "created_by": ME}
    assert calls.read_policy("p").read(reply(fields)) == Policy("p", "t", ME, allow, deny)


@pytest.mark.parametrize("rules", [7, "/a", [1], [{}]])
def test_rules_that_are_none(rules: object) -> None:
    with pytest.raises(UnexpectedReply):
        calls.read_policy("p").read(reply({"allow": rules}))


@pytest.mark.parametrize(
    ("fields", "name", "has_rules"),
    [
        ({"policy": {"name": "p", "allow": {"/a": {}}}}, "p", True),
        ({"policy_name": "p", "policy": {"Allow": ["/a"], "Deny": None}}, "p", True),
        ({}, "", False),
    ],
)
def test_who_one_is_in_every_generation(fields: dict[str, Any], name: str, has_rules: bool) -> None:
    info, policy = calls.describe_self().read(reply({"identity": ME, "created_at": "t", **fields}))
    assert info == IdentityInfo(ME, False, "t", "", name)
    assert (policy is not None) == has_rules
    if policy is not None:
        assert (policy.name, policy.allow) == (name, ("/a",))


# --- the server itself ---


@pytest.mark.parametrize(
    ("fields", "uptime", "latency", "unreachable"),
    [
        ({"uptime": 90, "keystore_latency": 3}, 90, 3, False),
        ({"uptime": 90, "keystore_unreachable": True}, 90, 0, True),
        ({"uptime": 90_000_000_000}, 90, 0, False),
        ({"uptime": 90_000_000_000, "kms": {"state": "reachable", "latency": 3_000_000}}, 90, 3, False),
        ({"uptime": 90_000_000_000, "kms": {"state": "unreachable"}}, 90, 0, True),
        ({"uptime": None, "kms": 7}, 0, 0, False),
    ],
)
def test_status_of_every_generation(fields: dict[str, Any], uptime: int, latency: int, unreachable: bool) -> None:
    status = calls.status().read(reply({"version": "1", **fields}))
    assert (status.uptime, status.keystore_latency, status.keystore_unreachable) == (uptime, latency, unreachable)


@pytest.mark.parametrize("body", [b"<html>", b"\xff"])
def test_metrics_that_are_none(body: bytes) -> None:
    with pytest.raises(UnexpectedReply):
        calls.metrics().read(reply(body))


@pytest.mark.parametrize("body", [{}, [1], [[]]])
def test_apis_that_are_none(body: object) -> None:
    with pytest.raises(UnexpectedReply):
        calls.apis().read(reply(body))


# --- secrets ---


@pytest.mark.parametrize("value", ["?", "YQ", "YQ==YQ==", 7, ["YQ=="]])
def test_what_is_no_base64_is_not_taken_for_a_secret(value: object) -> None:
    with pytest.raises(UnexpectedReply, match="the 'plaintext' of the reply is not base64"):
        calls.decrypt("k", b"", b"").read(reply({"plaintext": value}))


def test_an_empty_plaintext_of_old_is_null() -> None:
    assert calls.decrypt("k", b"", b"").read(reply({"plaintext": None})) == b""
    assert calls.decrypt("k", b"", b"").read(reply({"plaintext": ""})) == b""


@pytest.mark.parametrize(
    ("call", "body", "complaint"),
    [
        (calls.decrypt("k", b"", b""), {}, "'plaintext' of the reply is not base64"),
        (calls.encrypt("k", b"", b""), {}, "'ciphertext' of the reply is not base64"),
        (calls.encrypt("k", b"", b""), {"ciphertext": None}, "'ciphertext' of the reply is empty"),
        (calls.generate_key("k", b""), {}, "'plaintext' of the reply is not base64"),
        (calls.generate_key("k", b""), {"plaintext": None, "ciphertext": "Yw=="}, "has 0 bytes, not 32"),
        (calls.generate_key("k", b""), {"plaintext": "YQ==", "ciphertext": "Yw=="}, "has 1 bytes, not 32"),
        (calls.generate_key("k", b""), {"plaintext": "YWFh" * 11, "ciphertext": "Yw=="}, "has 33 bytes, not 32"),
        (calls.generate_key("k", b""), {"plaintext": KEY, "ciphertext": ""}, "'ciphertext' of the reply is empty"),
        (calls.hmac("k", b""), {"hmac": ""}, "has 0 bytes, not 32"),
    ],
)
def test_no_key_and_no_ciphertext_is_made_of_nothing(call: calls.Call[object], body: object, complaint: str) -> None:
    with pytest.raises(UnexpectedReply, match=complaint):
        call.read(reply(body))


def test_what_is_sent_and_received_is_in_no_text() -> None:
    assert repr(reply({"plaintext": KEY})) == "Reply(200, 'application/json', <62 bytes>)"
    assert repr(calls.encrypt("k", b"secret", b"")) == "Call(POST /v1/key/encrypt/k)"


# --- refusals ---


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (reply(b'{"message":"key does not exist"\n}', 404), "key does not exist"),
        (reply({"message": "a", "error": "b"}, 400), "b"),
        (reply(b"404 page not found\n", 404, "text/plain; charset=utf-8"), "404 page not found"),
        (reply(b"<html>", 502, "text/html"), "HTTP status 502 Bad Gateway"),
        (reply(b"x" * 300, 500, "text/plain"), "HTTP status 500 Internal Server Error"),
        (reply({"message": 7}, 400), "HTTP status 400 Bad Request"),
        (reply(b"", 307, ""), "HTTP status 307 Temporary Redirect"),
        (reply(b"", 299, ""), "HTTP status 299"),
        (reply(b"[" * 100_000, 400), "HTTP status 400 Bad Request"),
    ],
)
def test_a_refusal_has_the_words_of_the_server_or_the_status(refused: Reply, message: str) -> None:
    with pytest.raises(APIError) as caught:
        checked(refused)
    assert (caught.value.status, caught.value.message) == (refused.status, message)


READERS: list[Callable[[Reply], object]] = [
    calls.describe_key("k").read,
    calls.generate_key("k", b"").read,
    calls.decrypt("k", b"", b"").read,
    calls.list_keys("").read,
    calls.list_identities("").read,
    calls.read_policy("p").read,
    calls.describe_self().read,
    calls.status().read,
    calls.version().read,
    calls.apis().read,
    calls.metrics().read,
    lambda reply: [replies.audit_event(line) for line in [reply.body]],
    lambda reply: [replies.error_event(line) for line in [reply.body]],
    checked,
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.sampled_from(["names", "policy", "allow", "request"]), values),
)


@given(
    st.sampled_from(READERS),
    st.binary() | JSON.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["", "application/json", "application/x-ndjson", "text/plain"]),
    st.sampled_from([200, 400, 503]),
)
def test_whatever_a_server_sends_is_read_or_an_api_error(
    read: Callable[[Reply], object], body: bytes, content_type: str, status: int
) -> None:
    with suppress(APIError):
        read(Reply(status, content_type, body))


# --- log streams ---


@given(st.lists(st.binary(max_size=20).filter(lambda line: line.strip() and b"\n" not in line)), st.integers(1, 9))
def test_lines_come_whole_however_they_were_cut(lines: list[bytes], size: int) -> None:
    text = b"".join(line + b"\n" for line in lines)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    cutter = Lines()
    assert [line for piece in pieces for line in cutter.feed(piece)] == lines


def test_the_last_line_needs_no_end() -> None:
    lines = Lines()
    assert list(lines.feed(b"a\n\nb")) == [b"a"]
    assert list(lines.feed(b"")) == [b"b"]
    assert list(lines.feed(b"")) == []


@pytest.mark.parametrize("pieces", [[b"x" * (MAX_LINE + 1)], [b"x" * MAX_LINE, b"x"], [b"x" * (MAX_LINE + 1) + b"\n"]])
def test_a_line_without_an_end_is_an_error(pieces: list[bytes]) -> None:
    *begun, last = pieces
    lines = Lines()
    assert [line for piece in begun for line in lines.feed(piece)] == []
    with pytest.raises(UnexpectedReply, match="a line of the log is longer than"):
        lines.feed(last)


def audit_line(time: int, **request: str) -> bytes:
    event = {"time": "t", "request": {"path": "/p", **request}, "response": {"code": 200, "time": time}}
    return json.dumps(event).encode()


@pytest.mark.parametrize(
    ("read", "time", "seconds"),
    [
        (replies.audit_event, 2, 0.002),
        (replies.audit_event, 15_001, 15.001),
        (replies.audit_event, 123_000, 0.000_123),  # nanoseconds, rounded, of a server before October 2023
        (replies.audit_event, 20_000_000_000, 20.0),
        (replies.audit_trace_event, 55_737, 0.000_055_737),
    ],
)
def test_response_times_are_seconds(read: Callable[[bytes], Any], time: int, seconds: float) -> None:
    assert read(audit_line(time)).response_time == pytest.approx(seconds)


def test_audit_events_of_every_generation() -> None:
    line = audit_line(1, ip="::1", identity=ME)
    assert replies.audit_event(line) == ("t", "/p", ME, "::1", 200, 0.001, line.decode())
    assert replies.audit_event(audit_line(1) + b"\r") == ("t", "/p", "", "", 200, 0.001, audit_line(1).decode())


@pytest.mark.parametrize("line", [b"x", b"[]", b"{}", b'{"request":{}}', b'{"request":[],"response":{}}', b"\xff"])
def test_events_that_are_none(line: bytes) -> None:
    with pytest.raises(UnexpectedReply, match="not what a KES server sends"):
        replies.audit_event(line)


def test_error_events() -> None:
    line = b'{"message":"time=t level=ERROR msg=\\"no\\""}'
    assert replies.error_event(line) == ('time=t level=ERROR msg="no"', line.decode())
