"""Every call of the API, once and as a value: what is sent, whether it may be sent again, and how its answer is read.

The clients carry calls out, one waiting and one with asyncio; neither knows what is in them.
"""

import json
import re
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from keswick.client import replies
from keswick.client.errors import APIError, NotServed, RunTimePoliciesOff
from keswick.client.metrics import Metrics
from keswick.client.replies import Reply
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

_UNRESERVED = re.compile(r"[A-Za-z0-9_.~-]*")

Result = TypeVar("Result")


def _final(refusal: APIError) -> APIError:
    return refusal


class Call(NamedTuple, Generic[Result]):
    method: str
    path: str
    read: Callable[[Reply], Result]
    """From a success to what the caller gets. Raises APIError."""
    body: bytes | None = None
    repeatable: bool = True
    """Whether it may be done twice without harm, so that it can be sent again when its answer was lost."""
    after: "Callable[[APIError], Call[Result] | APIError]" = _final
    """From a refusal to the same call as servers of another time want it, or to what the caller gets."""

    def __repr__(self) -> str:
        return f"Call({self.method} {self.path})"


# --- keys ---


def create_key(name: str) -> Call[None]:
    return Call("POST", _path("/v1/key/create/", name), replies.nothing, repeatable=False)


def import_key(name: str, key: bytes, cipher: str) -> Call[None]:
    """The body says the same in the words of today and in those before October 2023."""
    of_old = {"AES256": "AES256-GCM_SHA256", "ChaCha20": "XCHACHA20-POLY1305"}.get(cipher, cipher)
    secret = _base64(key)
    body = _json(key=secret, cipher=cipher, bytes=secret, algorithm=of_old)
    return Call("POST", _path("/v1/key/import/", name), replies.nothing, body, repeatable=False)


def describe_key(name: str) -> Call[KeyInfo]:
    return Call("GET", _path("/v1/key/describe/", name), partial(replies.key_info, name=name))


def delete_key(name: str) -> Call[None]:
    return Call("DELETE", _path("/v1/key/delete/", name), replies.nothing, repeatable=False)


def encrypt(name: str, plaintext: bytes, context: bytes) -> Call[bytes]:
    body = _json(plaintext=_base64(plaintext), context=_base64(context))
    return Call("POST", _path("/v1/key/encrypt/", name), replies.ciphertext, body)


def decrypt(name: str, ciphertext: bytes, context: bytes) -> Call[bytes]:
    body = _json(ciphertext=_base64(ciphertext), context=_base64(context))
    return Call("POST", _path("/v1/key/decrypt/", name), replies.plaintext, body)


def generate_key(name: str, context: bytes) -> Call[DataKey]:
    return Call("POST", _path("/v1/key/generate/", name), replies.data_key, _json(context=_base64(context)))


def hmac(name: str, message: bytes) -> Call[bytes]:
    return Call("POST", _path("/v1/key/hmac/", name), replies.hmac, _json(message=_base64(message)))


# --- policies and identities ---


def describe_policy(name: str) -> Call[PolicyInfo]:
    path = _path("/v1/policy/describe/", name, "policy name")
    return Call("GET", path, partial(replies.policy_info, name=name))


def read_policy(name: str) -> Call[Policy]:
    return Call("GET", _path("/v1/policy/read/", name, "policy name"), partial(replies.policy, name=name))


def describe_identity(identity: str) -> Call[IdentityInfo]:
    """Servers before 2022 tell the policy of an identity only in their list."""
    path = _path("/v1/identity/describe/", identity, "identity")
    listed = _path("/v1/identity/list/", identity, "identity")
    of_old = Call("GET", listed, partial(replies.listed_identity, identity=identity))

    def after(refusal: APIError) -> Call[IdentityInfo] | APIError:
        return of_old if isinstance(refusal, NotServed) else refusal

    return Call("GET", path, partial(replies.identity_info, identity=identity), after=after)


def describe_self() -> Call[tuple[IdentityInfo, Policy | None]]:
    return Call("GET", "/v1/identity/self/describe", replies.self_info)


# --- policies and identities at run time ---


def _or_off(refusal: APIError) -> APIError:
    return RunTimePoliciesOff(refusal.status, refusal.message) if isinstance(refusal, NotServed) else refusal


def _at_run_time(
    method: str, path: str, body: bytes | None = None, *, otherwise: Call[None] | None = None
) -> Call[None]:
    """`otherwise`: the same at the path that other servers have."""

    def after(refusal: APIError) -> Call[None] | APIError:
        return otherwise if otherwise is not None and isinstance(refusal, NotServed) else _or_off(refusal)

    return Call(method, path, replies.nothing, body, after=after)


def write_policy(name: str, allow: Iterable[str], deny: Iterable[str], as_paths: bool = False) -> Call[None]:
    """Until v0.14 a policy was `paths` that are allowed, and nothing else was understood. `as_paths`: a server that
    answers as then is to show it so; releases that know no `paths` pass over them."""
    path = _path("/v1/policy/write/", name, "policy name")
    allowed, denied = _rules(allow), _rules(deny)
    of_old = _at_run_time("POST", path, _json(paths=allowed))
    rules = {"allow": allowed, "paths": allowed} if as_paths and not denied else {"allow": allowed, "deny": denied}

    def after(refusal: APIError) -> Call[None] | APIError:
        # These words alone, for releases of 2022 make an empty policy of `paths`, without a word about it.
        return of_old if refusal.message == "invalid json" and not denied else _or_off(refusal)

    return Call("POST", path, replies.nothing, _json(**rules), after=after)


def delete_policy(name: str) -> Call[None]:
    return _at_run_time("DELETE", _path("/v1/policy/delete/", name, "policy name"))


def assign_policy(name: str, identity: str) -> Call[None]:
    """As until v0.17, else as since v0.18."""
    policy, to = _path("/", name, "policy name"), _path("/", identity, "identity")
    newer = _at_run_time("POST", f"/v1/policy/assign{policy}", _json(identity=identity))
    return _at_run_time("POST", f"/v1/identity/assign{policy}{to}", otherwise=newer)


def forget_identity(identity: str) -> Call[None]:
    """As until v0.17, else as since v0.18."""
    path = _path("/", identity, "identity")
    newer = _at_run_time("DELETE", f"/v1/identity/delete{path}")
    return _at_run_time("DELETE", f"/v1/identity/forget{path}", otherwise=newer)


def _rules(patterns: Iterable[str]) -> list[str]:
    """Raises TypeError for one text, whose characters would be rules of their own."""
    if isinstance(patterns, str):
        raise TypeError("rules are a list of texts, not one text")
    return list(patterns)


# --- lists ---


class Page(NamedTuple):
    names: list[str]
    following: "Call[Page] | None"
    """How to get the next page."""
    policies: Mapping[str, str] = {}
    """Of identities, where the list tells: the policy of each, or empty."""


def list_keys(prefix: str) -> Call[Page]:
    return _list("/v1/key/list/", prefix, "names", "name")


def list_policies(prefix: str) -> Call[Page]:
    return _list("/v1/policy/list/", prefix, "names", "name")


def list_identities(prefix: str) -> Call[Page]:
    return _list("/v1/identity/list/", prefix, "identities", "identity")


def _list(path: str, prefix: str, field: str, line_field: str) -> Call[Page]:
    def page_at(resource: str) -> Call[Page]:
        def read(reply: Reply) -> Page:
            names, continue_at, policies = replies.page(reply, field, line_field, resource)
            return Page(names, page_at(continue_at) if continue_at else None, policies)

        return Call("GET", _path(path, resource, "prefix"), read)

    # With the asterisk every generation lists by prefix; without it the older ones look for that very name.
    return page_at(prefix if prefix.endswith("*") else prefix + "*")


# --- the server ---


def version() -> Call[Version]:
    return Call("GET", "/version", replies.version)


def status() -> Call[Status]:
    return Call("GET", "/v1/status", replies.status)


def ready() -> Call[None]:
    return Call("GET", "/v1/ready", replies.nothing)


def metrics() -> Call[Metrics]:
    return Call("GET", "/v1/metrics", replies.metrics)


def apis() -> Call[tuple[API, ...]]:
    return Call("GET", "/v1/api", replies.apis)


# --- log streams ---


class Stream(NamedTuple, Generic[Result]):
    path: str
    read: Callable[[bytes], Result]
    """From a line to an event. Raises APIError."""
    otherwise: "Stream[Result] | None" = None
    """The same log at the path that other servers have."""
    by_unit: Mapping[str, Callable[[bytes], Result]] = {}
    """How to read it instead, where the server names the unit of times."""

    def reading(self, unit: str) -> Callable[[bytes], Result]:
        return self.by_unit.get(unit, self.read)


def audit_log(trace: bool) -> Stream[AuditEvent]:
    units = {"ms": replies.audit_event_in_milliseconds, "ns": replies.audit_trace_event}
    today = Stream("/v1/log/audit", replies.audit_event, by_unit=units)
    of_old = Stream("/v1/log/audit/trace", replies.audit_trace_event)
    return of_old._replace(otherwise=today) if trace else today._replace(otherwise=of_old)


def error_log(trace: bool) -> Stream[ErrorEvent]:
    today, of_old = (Stream(path, replies.error_event) for path in ("/v1/log/error", "/v1/log/error/trace"))
    return of_old._replace(otherwise=today) if trace else today._replace(otherwise=of_old)


# --- what is sent ---


def _json(**fields: str | list[str]) -> bytes:
    return json.dumps(fields).encode()


def _base64(data: bytes) -> str:
    """Raises TypeError for a text: whoever gives one might mean its UTF-8, or think that it is base64 already."""
    return b2a_base64(data, newline=False).decode()


def _path(prefix: str, name: str, what: str = "key name") -> str:
    """A name as one path segment; arguments that were not UTF-8 keep their bytes.

    Raises ValueError for what servers would take for another path, as `.` and `a//b`, in the words that they have for
    names.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ValueError(f"{what} '{name}' is empty, too long or contains invalid characters")
    if _UNRESERVED.fullmatch(name.removesuffix("*")):
        return prefix + name.replace("*", "%2A")
    from urllib.parse import quote  # late: few names need it, and it takes a while to import

    return prefix + quote(name, safe="", errors="surrogateescape")
