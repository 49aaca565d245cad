"""What every dialect answers, in tests/vectors/dialects: one request, and the answer of each time beside the others.

`answers` are by dialect; several, or `all`, may share one. A `message` is a refusal in the dialect's form, `json` a
success with one value, `lines` one with a value per line; with none of them the body is empty. `type` and `headers` are
those of the answer. `<…>` stands for what differs from run to run; `save` keeps a field of an answer for later calls.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import keswick
from keswick.server.dialects import DIALECTS
from support.api import Answer, Caller, new_pair
from support.certificates import make
from support.server import RunningServer, start_server

FOLDER = Path(__file__).parent.parent / "vectors" / "dialects"
NAMES = ("2021", "2022", "2023", "2025")
FILES = sorted(path.stem for path in FOLDER.glob("*.json"))

TEXT, JSON, NDJSON = "text/plain; charset=utf-8", "application/json", "application/x-ndjson"
OLD_JSON = "application/json; charset=utf-8"


@dataclass
class Cast:
    """A server that speaks one dialect, and who calls it."""

    dialect: str
    server: RunningServer
    callers: dict[str, Caller]
    words: dict[str, Any]
    """What the texts in `<…>` stand for."""

    def say(self, text: str) -> str:
        return re.sub("<([^>]*)>", lambda found: str(self.words[found[1]]), text)


@pytest.fixture(scope="module", params=NAMES)
def cast(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    folder = tmp_path_factory.mktemp("dialect")
    pairs = {name: new_pair() for name in ("admin", "app", "stranger")}
    identities = {name: Caller(0, pair, folder).identity for name, pair in pairs.items()}
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    (keys / "an old name").write_text('{"bytes":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="}')
    (keys / "broken").write_text("")
    config: dict[str, Any] = {
        "compatibility": request.param,
        "runtime_policies": "on",
        "admin": {"identity": identities["admin"]},
        "tls": {"auth": "off"},
        "policy": {
            "app": {
                "allow": ["/v1/key/*/app-*", "/v1/key/bulk/*/app-*", "/v1/policy/read/*"],
                "deny": ["/v1/key/*/app-secret*"],
                "identities": [identities["app"]],
            },
            "empty": {},
        },
    }
    with start_server(folder, **config) as server:
        callers = {name: Caller(server.port, pair, folder) for name, pair in pairs.items()}
        words: dict[str, Any] = {**identities, "version": keswick.__version__, "unknown": "<unknown>"}
        words["admin and app"] = sorted([identities["admin"], identities["app"]])
        yield Cast(request.param, server, callers, words)


@pytest.mark.parametrize("file", FILES)
def test_answers_in_the_words_of_the_time(cast: Cast, file: str) -> None:
    wrong = []
    for case in json.loads((FOLDER / f"{file}.json").read_text())["cases"]:
        answer = _call(cast, case)
        if problem := _difference(cast, _expected(case, cast.dialect), answer):
            wrong.append(f"{case['call']}: {problem}; answered {answer.status} {answer.headers} {answer.body[:300]!r}")
        elif "save" in case:
            cast.words |= {word: answer.json[name] for word, name in case["save"].items()}
    assert not wrong, "\n".join(wrong)


def test_every_case_has_one_answer_for_every_dialect() -> None:
    for file in FILES:
        for case in json.loads((FOLDER / f"{file}.json").read_text())["cases"]:
            named = [dialect for key in case["answers"] for dialect in key.split()]
            assert named == ["all"] or sorted(named) == sorted(NAMES), case


def _call(cast: Cast, case: dict[str, Any]) -> Answer:
    method, path = cast.say(case["call"]).split(" ", 1)
    body: Any = case.get("raw", "").encode() or None
    if "body" in case:
        body = cast.say(json.dumps(case["body"])).encode()
        if "size" in case:
            start, end = body[:-1] + (b", " if case["body"] else b"") + b'"padding": "', b'"}'
            body = start + b"x" * (case["size"] - len(start) - len(end)) + end
    return cast.callers[case.get("as", "app")].call(method, path, body)


def _expected(case: dict[str, Any], dialect: str) -> dict[str, Any]:
    return next(answer for key, answer in case["answers"].items() if key == "all" or dialect in key.split())


def _difference(cast: Cast, expected: dict[str, Any], answer: Answer) -> str:
    """What is wrong with an answer, or nothing."""
    if answer.status != expected["status"]:
        return f"status is not {expected['status']}"
    headers = dict(expected.get("headers", {}))
    media_type, text = _body(cast, expected, answer)
    if "message" in expected and cast.dialect != "2025":
        headers["x-content-type-options"] = "nosniff"
    if media_type or not answer.body:
        headers["content-type"] = media_type
    for name, value in headers.items():
        if answer.headers.get(name) != value:
            return f"{name} is not {value!r}"
    return text


def _body(cast: Cast, expected: dict[str, Any], answer: Answer) -> tuple[str | None, str]:
    """The media type that the body should have, and what is wrong with the body."""
    if "message" in expected:
        end = b"\n}" if cast.dialect == "2025" else b"}"
        body = b'{"message":' + json.dumps(expected["message"]).encode() + end
        return JSON if cast.dialect == "2025" else OLD_JSON, "" if answer.body == body else f"body is not {body!r}"
    if "json" in expected:
        usual = TEXT if cast.dialect in ("2021", "2022") else JSON
        if answer.body.endswith(b"\n") is not expected.get("newline", True):
            return usual, "line feed at the end"
        return expected.get("type", usual), _mismatch(cast, expected["json"], answer.json)
    if "lines" in expected:
        lines = [json.loads(line) for line in answer.body.splitlines()]
        return NDJSON, _mismatch(cast, expected["lines"], lines)
    text = expected.get("text", "").encode()
    return expected.get("type"), "" if answer.body == text else f"body is not {text!r}"


TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z")
PLACEHOLDERS: dict[str, Callable[[Any], bool]] = {
    "<time>": lambda got: TIME.fullmatch(got) is not None,
    "<text>": lambda got: isinstance(got, str) and got != "",
    "<integer>": lambda got: isinstance(got, int) and got > 0,
    "<seconds>": lambda got: isinstance(got, int) and 0 <= got < 1000,
    "<store of 2022>": lambda got: got.pop("latency", 1_000_000) % 1_000_000 == 0 and got == {"state": "available"},
    "<nanoseconds>": lambda got: isinstance(got, int) and got > 1_000_000,
}


def _mismatch(cast: Cast, expected: Any, got: Any, place: str = "") -> str:
    if isinstance(expected, dict) and isinstance(got, dict) and expected.keys() == got.keys():
        parts = [_mismatch(cast, expected[key], got[key], f"{place}.{key}") for key in expected]
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        parts = [_mismatch(cast, *pair, f"{place}[{i}]") for i, pair in enumerate(zip(expected, got, strict=True))]
    elif isinstance(expected, str) and (size := re.fullmatch(r"<(\d+) bytes>", expected)):
        parts = [] if len(base64.b64decode(got)) == int(size[1]) else [f"{place} has not {size[1]} bytes"]
    elif isinstance(expected, str) and expected in PLACEHOLDERS:
        parts = [] if PLACEHOLDERS[expected](got) else [f"{place} is not {expected}"]
    else:
        if isinstance(expected, str) and expected.startswith("<") and expected[1:-1] in cast.words:
            expected = cast.words[expected[1:-1]]
        parts = [] if (expected, type(expected)) == (got, type(got)) else [f"{place} is not {expected!r}"]
    return next(filter(None, parts), "")


def test_the_list_of_routes(cast: Cast) -> None:
    served = {api["path"]: api for api in cast.callers["admin"].call("GET", "/v1/api").json}
    old = cast.dialect != "2025"
    assert served["/v1/key/create/"]["method"] == ("POST" if old else "PUT")
    assert served["/v1/policy/delete/"]["method"] == "DELETE"
    limits = {"2021": 1 << 19, "2022": 1 << 19, "2023": 1 << 20, "2025": 1_000_000}
    assert served["/v1/key/encrypt/"]["max_body"] == limits[cast.dialect]
    assert ("verify_auth" in served["/version"]) is (cast.dialect == "2023")


# --- log streams ---


@pytest.mark.parametrize("path", ["/v1/log/audit", "/v1/log/audit/trace"])
def test_audit_events_have_the_fields_and_units_of_the_time(cast: Cast, path: str) -> None:
    admin, stranger = cast.callers["admin"], cast.callers["stranger"]
    with (
        httpx.Client(verify=admin.context, timeout=20) as client,
        client.stream("GET", f"{cast.server.endpoint}{path}") as stream,
    ):
        assert stream.headers["content-type"] == NDJSON
        stranger.call("GET", "/v1/status")
        events = (json.loads(line) for line in stream.iter_lines())
        event = next(event for event in events if event["request"]["path"] == "/v1/status")
    request = {"path": "/v1/status", "identity": stranger.identity}
    of_2021 = cast.dialect in ("2021", "2022")
    assert event["request"] == (request if of_2021 else {"ip": "127.0.0.1", **request})
    assert ("." in event["time"]) is not of_2021
    assert event["response"]["code"] == 403
    # A refusal takes some microseconds: a plain number of nanoseconds, and no whole millisecond.
    in_milliseconds = cast.dialect == "2025" and path == "/v1/log/audit"
    assert (event["response"]["time"] < 1000) is in_milliseconds


@pytest.mark.parametrize("path", ["/v1/log/error", "/v1/log/error/trace", "/v1/log/log/error/trace"])
def test_errors_are_streamed_at_every_path_that_it_had(cast: Cast, path: str) -> None:
    admin = cast.callers["admin"]
    with (
        httpx.Client(verify=admin.context, timeout=20) as client,
        client.stream("GET", f"{cast.server.endpoint}{path}") as stream,
    ):
        assert admin.call("GET", "/v1/key/describe/broken").status == 502
        event = json.loads(next(stream.iter_lines()))
        assert list(event) == ["message"]
        assert "/v1/key/describe/broken" in event["message"]
        of_then = re.match(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d failed to ", event["message"])
        assert (of_then is None) is event["message"].startswith("time=") is (cast.dialect == "2025")


# --- what no table of requests can hold ---

CERTIFICATES = {
    "2021": ("no client certificate is present", "too many identities: more than one certificate is present"),
    "2022": ("no client certificate is present", "too many client certificates are present"),
    "2023": ("no client certificate is present", "too many client certificates are present"),
    "2025": ("tls: client certificate is required", "tls: received more than one client certificate"),
}


def test_other_than_one_certificate(cast: Cast) -> None:
    none, several = CERTIFICATES[cast.dialect]
    folder, port = cast.server.folder, cast.server.port
    for caller, message in (
        (Caller(port, make("p256", ca=True), folder), none),
        (Caller(port, new_pair(), folder, chain=(new_pair(),)), several),
    ):
        answer = caller.call("GET", "/v1/identity/self/describe")
        assert (answer.status, answer.message) == (400, message)
        assert caller.call("GET", "/version").status == 200


def test_the_time_limit() -> None:
    messages = {dialect: json.loads(DIALECTS[dialect].timeout[2])["message"] for dialect in NAMES}
    today = "request timeout exceeded"
    assert messages == {"2021": "timeout", "2022": "timeout", "2023": today, "2025": today}
    assert {DIALECTS[dialect].timeout[0] for dialect in NAMES} == {503}


def test_a_key_store_that_fails(cast: Cast) -> None:
    """The last one, for the server remembers the outage for a while."""
    of_2021 = cast.dialect in ("2021", "2022")
    keys = cast.server.folder / "keys"
    keys.rename(keys.with_name("away"))
    try:
        for method, path, message in (
            ("POST", "/v1/key/create/app-lost", "failed to create key"),
            ("DELETE", "/v1/key/delete/app-lost", "failed to delete key"),
            ("GET", "/v1/key/list/app-*", "failed to list keys"),
        ):
            answer = cast.callers["admin"].call(method, path)
            assert (answer.status, answer.message) == (502, f"bad gateway: {message}" if of_2021 else message)
        status = cast.callers["admin"].call("GET", "/v1/status").json
        assert (status["kms"] == {"state": "unreachable"}) if of_2021 else (status["keystore_unreachable"] is True)
    finally:
        keys.with_name("away").rename(keys)
