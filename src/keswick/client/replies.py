"""Reading what servers answer, those of every generation."""

import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from keswick.client.errors import APIError, ListIncomplete, UnexpectedReply, refusal
from keswick.client.metrics import Metrics
from keswick.client.results import (
    API,
    AuditEvent,
    DataKey,
    ErrorEvent,
    IdentityInfo,
    KeyInfo,
    Policy,
    PolicyInfo,
    Status,
    Version,
)

MAX_LINE = 1 << 20
"""Bytes of one line of a log stream."""

MAX_REFUSAL = 1 << 20
"""Bytes that are read of what a server says instead of a log stream."""

TIME_UNIT = "x-time-unit"
"""The header of a log stream that names the unit of its response times, such as `ns`. Servers of Keswick have it."""

_SECOND = 1_000_000_000
_KEY_SIZE = _HMAC_SIZE = 32
_NO_MILLISECONDS = 20_000
"""No request takes so many seconds that a response time of so many milliseconds is one."""


class Reply(NamedTuple):
    status: int
    content_type: str
    body: bytes

    def __repr__(self) -> str:
        return f"Reply({self.status}, {self.content_type!r}, <{len(self.body)} bytes>)"

    @property
    def media_type(self) -> str:
        return self.content_type.partition(";")[0].strip().lower()


# --- what a success says ---


def nothing(reply: Reply) -> None:
    """A success without content."""


# What is too short is refused: nobody is to encrypt with a key that is none, or to keep a ciphertext that is none.


def ciphertext(reply: Reply) -> bytes:
    return _ciphertext(_object(reply))


def plaintext(reply: Reply) -> bytes:
    return _bytes(_object(reply), "plaintext")


def hmac(reply: Reply) -> bytes:
    return _sized(_object(reply), "hmac", _HMAC_SIZE)


def data_key(reply: Reply) -> DataKey:
    fields = _object(reply)
    return DataKey(_sized(fields, "plaintext", _KEY_SIZE), _ciphertext(fields))


def key_info(reply: Reply, name: str) -> KeyInfo:
    fields = _object(reply)
    return KeyInfo(name, _text(fields, "algorithm"), _text(fields, "created_at"), _text(fields, "created_by"))


def policy_info(reply: Reply, name: str) -> PolicyInfo:
    fields = _object(reply)
    return PolicyInfo(name, _text(fields, "created_at"), _text(fields, "created_by"))


def policy(reply: Reply, name: str) -> Policy:
    return _policy(reply, _object(reply), name)


def identity_info(reply: Reply, identity: str) -> IdentityInfo:
    fields = _object(reply)
    return _identity(fields, identity, _text(fields, "policy"))


def listed_identity(reply: Reply, identity: str) -> IdentityInfo:
    """From a list of before 2022: a line for each with its policy, or a map. Raises IdentityNotFound."""
    if reply.media_type == "application/x-ndjson":
        lines = [_json(reply, line) for line in reply.body.splitlines()]
        policies = {_text(line, "identity"): line.get("policy") for line in lines if isinstance(line, dict)}
    else:
        policies = _object(reply)
    if identity not in policies:
        raise refusal(404, "identity does not exist")
    return _identity({}, identity, _text(policies, identity))


def self_info(reply: Reply) -> tuple[IdentityInfo, Policy | None]:
    """The name of the policy stands in it today, beside it in 2022."""
    fields = _object(reply)
    rules = fields.get("policy")
    name = _text(fields, "policy_name")
    policy = _policy(reply, rules, _text(rules, "name") or name) if isinstance(rules, dict) else None
    return _identity(fields, _text(fields, "identity"), policy.name if policy else name), policy


def version(reply: Reply) -> Version:
    fields = _object(reply)
    return Version(_text(fields, "version"), _text(fields, "commit"))


def status(reply: Reply) -> Status:
    """Servers before October 2023 count their uptime in nanoseconds, those before 2022 tell of the key store in an
    object."""
    fields = _object(reply)
    uptime, latency = _number(fields, "uptime"), _number(fields, "keystore_latency")
    store = fields.get("kms")
    if not isinstance(store, dict):
        store = {}
    return Status(
        _text(fields, "version"),
        _text(fields, "os"),
        _text(fields, "arch"),
        uptime // _SECOND if uptime >= _SECOND else uptime,  # so many seconds are more than thirty years
        _number(fields, "num_cpu"),
        _number(fields, "num_cpu_used"),
        _number(fields, "mem_heap_used"),
        _number(fields, "mem_stack_used"),
        latency or _number(store, "latency") // 1_000_000,
        fields.get("keystore_unreachable") is True or store.get("state") == "unreachable",
    )


def metrics(reply: Reply) -> Metrics:
    try:
        return Metrics(reply.body.decode())
    except ValueError:
        raise _not_understood(reply) from None


def apis(reply: Reply) -> tuple[API, ...]:
    found = _json(reply, reply.body)
    if not isinstance(found, list) or not all(isinstance(api, dict) for api in found):
        raise _not_understood(reply)
    return tuple(
        API(_text(api, "method"), _text(api, "path"), _number(api, "max_body"), _seconds(api, "timeout"))
        for api in found
    )


class Page(NamedTuple):
    names: list[str]
    continue_at: str
    """What to ask for to get the next page, or empty."""
    policies: Mapping[str, str]
    """Of identities, where the list tells: the policy of each, or empty."""


def page(reply: Reply, field: str, line_field: str, resource: str) -> Page:
    """One page of a list that was asked for as `resource`.

    `{"names": […], "continue_at": …}` today; one object per line, array or map of identities before October 2023.
    """
    if reply.media_type == "application/x-ndjson":
        items = [_json(reply, line) for line in reply.body.splitlines()]
    else:
        # An empty list of 2022 is an empty body without a type.
        decoded = _json(reply, reply.body) if reply.body or reply.content_type else []
        if isinstance(decoded, dict) and isinstance(decoded.get(field), list):
            following = _text(decoded, "continue_at")
            if following and ("~" not in following or following == resource):
                # The releases since October 2023 take their token for a prefix, and lose most of what follows.
                raise ListIncomplete(reply.status, "there are more names than this server can list; narrow the prefix")
            return Page([_string(reply, name) for name in decoded[field]], following, {})
        if isinstance(decoded, dict):
            decoded = [{line_field: name, "policy": policy} for name, policy in decoded.items()]
        items = decoded if isinstance(decoded, list) else [decoded]
    names = []
    policies = {}
    for item in items:
        policy = None
        if isinstance(item, dict):
            if isinstance(item.get("error"), str):
                raise refusal(reply.status, item["error"])
            policy = item.get("policy")
            item = item.get(line_field, item.get(line_field.title()))
        name = _string(reply, item)
        names.append(name)
        if isinstance(policy, str):
            policies[name] = policy
    return Page(names, "", policies)


# --- what log streams say ---


class Lines:
    """Cuts what comes in pieces into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The lines that end in this piece; at the end, for an empty piece, what is left without one."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if not piece:
            lines, self._rest = [self._rest], b""
        if len(self._rest) > MAX_LINE or any(len(line) > MAX_LINE for line in lines):
            raise UnexpectedReply(200, f"a line of the log is longer than {MAX_LINE} bytes")
        return (line for line in lines if line.strip())


def audit_event(line: bytes) -> AuditEvent:
    """Of a server that names no unit: the time is in milliseconds, before October 2023 in nanoseconds, rounded to
    microseconds."""
    event = _audit_event(line)
    in_nanoseconds = event.response_time >= _NO_MILLISECONDS and event.response_time % 1000 == 0
    return event._replace(response_time=event.response_time / (_SECOND if in_nanoseconds else 1000))


def audit_event_in_milliseconds(line: bytes) -> AuditEvent:
    event = _audit_event(line)
    return event._replace(response_time=event.response_time / 1000)


def audit_trace_event(line: bytes) -> AuditEvent:
    """The time is in nanoseconds, as of all servers that call the log a trace."""
    event = _audit_event(line)
    return event._replace(response_time=event.response_time / _SECOND)


def _audit_event(line: bytes) -> AuditEvent:
    event = _event(line)
    request, response = event.get("request"), event.get("response")
    if not isinstance(request, dict) or not isinstance(response, dict):
        raise _no_event()
    return AuditEvent(
        _text(event, "time"),
        _text(request, "path"),
        _text(request, "identity"),
        _text(request, "ip"),
        _number(response, "code"),
        _number(response, "time"),
        _line_text(line),
    )


def error_event(line: bytes) -> ErrorEvent:
    return ErrorEvent(_text(_event(line), "message"), _line_text(line))


def _event(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise _no_event()
    return event


def _no_event() -> APIError:
    return UnexpectedReply(200, "a line of the log is not what a KES server sends")


def _line_text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")


# --- what a refusal says ---


def checked(reply: Reply) -> Reply:
    """The reply itself if it is a success. Raises APIError."""
    if reply.status == 200:
        return reply
    raise refused(reply)


def refused(reply: Reply) -> APIError:
    """What a reply that is no success means."""
    try:
        decoded = json.loads(reply.body)
        message = decoded.get("error") or decoded["message"]
    except (ValueError, AttributeError, KeyError, RecursionError):
        message = None
    if not isinstance(message, str):
        message = reply.body.decode("utf-8", "replace").strip()
        if reply.media_type != "text/plain" or not 0 < len(message) < 200:
            message = f"HTTP status {reply.status} {_reason(reply.status)}".rstrip()
    return refusal(reply.status, message)


def _reason(status: int) -> str:
    from http import HTTPStatus  # late: servers have words of their own

    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


# --- the parts of a reply ---


def _policy(reply: Reply, fields: dict[str, Any], name: str) -> Policy:
    """Rules are the names in an object today, an array before; `paths` in 2021, with a capital letter in 2022."""
    lists = []
    for names in (("allow", "Allow", "paths"), ("deny", "Deny")):
        rules = next((fields[name] for name in names if fields.get(name)), ())
        if not isinstance(rules, dict | list | tuple):
            raise _not_understood(reply)
        lists.append(tuple(_string(reply, rule) for rule in rules))
    return Policy(name, _text(fields, "created_at"), _text(fields, "created_by"), *lists)


def _identity(fields: dict[str, Any], identity: str, policy: str) -> IdentityInfo:
    is_admin = fields.get("admin") is True
    return IdentityInfo(identity, is_admin, _text(fields, "created_at"), _text(fields, "created_by"), policy)


def _object(reply: Reply) -> dict[str, Any]:
    decoded = _json(reply, reply.body)
    if not isinstance(decoded, dict):
        raise _not_understood(reply)
    return decoded


def _json(reply: Reply, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _not_understood(reply) from None


def _not_understood(reply: Reply) -> APIError:
    return UnexpectedReply(reply.status, "the reply is not what a KES server sends; is the endpoint right?")


def _string(reply: Reply, value: object) -> str:
    if not isinstance(value, str):
        raise _not_understood(reply)
    return value


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def _number(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    return value if isinstance(value, int) and abs(value) < 1 << 63 else 0  # nothing that servers count is larger


def _seconds(fields: dict[str, Any], name: str) -> float:
    value = fields.get(name)
    return value if isinstance(value, int | float) else 0


def _ciphertext(fields: dict[str, Any]) -> bytes:
    found = _bytes(fields, "ciphertext")
    if not found:
        raise UnexpectedReply(200, "the 'ciphertext' of the reply is empty")
    return found


def _sized(fields: dict[str, Any], name: str, size: int) -> bytes:
    found = _bytes(fields, name)
    if len(found) != size:
        raise UnexpectedReply(200, f"the '{name}' of the reply has {len(found)} bytes, not {size}")
    return found


def _bytes(fields: dict[str, Any], name: str) -> bytes:
    """Old servers send an empty text as null."""
    try:
        value = fields[name]
        return binascii.a2b_base64("" if value is None else value, strict_mode=True)
    except (KeyError, ValueError, TypeError):
        raise UnexpectedReply(200, f"the '{name}' of the reply is not base64") from None
