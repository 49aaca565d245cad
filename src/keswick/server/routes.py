"""The whole API as one table: method, path, body limit, time limit, who may call it, handler.

A path that ends in a slash is a prefix; what follows it is the resource. A route whose method is PUT takes POST too.
"""

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from urllib.parse import unquote

from keswick._native import Headers
from keswick.config import Config
from keswick.server.bodies import MIB
from keswick.server.call import Answer, Call, Handler
from keswick.server.dialects import DIALECTS, Dialect
from keswick.server.handlers import identities, keys, logs, policies, system
from keswick.server.replies import json_reply

MB = 1_000_000


class Access(Enum):
    ANYONE = "no certificate looked at"
    IDENTIFIED = "any identity"
    PERMITTED = "the admin, or an identity whose policy allows the path"


ANYONE, IDENTIFIED, PERMITTED = Access.ANYONE, Access.IDENTIFIED, Access.PERMITTED


@dataclass(frozen=True, slots=True)
class Route:
    index: int
    method: str
    path: str
    max_body: int
    """Bytes; what is sent beyond them is not read."""
    timeout: float
    """Seconds; 0 for none."""
    access: Access
    handler: Handler

    refusal: Headers
    """What a reply to another method carries: the original names the right one in `Accept`, not in `Allow`."""

    is_optional: bool
    """Whether it is served only with `runtime_policies: on`, and else unknown: read-only grants of today, such as
    `/v1/policy/*`, would let their holders write."""

    other_names: tuple[str, ...]
    """The paths of the same operation in other releases, with a slash at the end as in `path`: a rule that denies one
    of them was written without thought of this one."""

    def takes(self, method: str) -> bool:
        return method == self.method or (method == "POST" and self.method == "PUT")


def _apis(call: Call) -> Answer:
    """Every route with its time limit in seconds, 0 for none, as the configuration has it."""
    config = call.state.config
    dialect = DIALECTS[config.dialect]
    return json_reply(
        [
            {
                "method": dialect.method(route.method),
                "path": route.path,
                "max_body": dialect.body_limits.get(route.path, route.max_body),
                "timeout": _number(timeout),
                **({"verify_auth": route.path not in call.state.open} if config.dialect == "2023" else {}),
            }
            for route, timeout in zip(ROUTES, call.state.timeouts, strict=False)
            if config.runtime_policies or not route.is_optional
        ]
    )


def _number(seconds: float) -> float | int:
    return int(seconds) if seconds == int(seconds) else seconds


_OPTIONAL = (policies.write, policies.delete, policies.assign, identities.assign, identities.forget)

_OTHER_NAMES = {
    "/v1/key/bulk/decrypt/": ("/v1/key/decrypt/",),
    "/v1/identity/forget/": ("/v1/identity/delete/",),
    "/v1/identity/delete/": ("/v1/identity/forget/",),
    "/v1/log/audit": ("/v1/log/audit/trace",),
    "/v1/log/audit/trace": ("/v1/log/audit",),
    "/v1/log/error": ("/v1/log/error/trace",),
    "/v1/log/error/trace": ("/v1/log/error",),
    "/v1/log/log/error/trace": ("/v1/log/error", "/v1/log/error/trace"),
}
"""But for those of assignments, whose handler looks at both: only there policy and identity are known."""

ROUTES = tuple(
    Route(
        index,
        *row,
        Headers([("Content-Type", "application/json"), ("Accept", row[0])]),
        row[-1] in _OPTIONAL,
        _OTHER_NAMES.get(row[1], ()),
    )
    for index, row in enumerate(
        (
            ("GET", "/version", 0, 10, ANYONE, system.version),
            ("GET", "/v1/ready", 0, 15, PERMITTED, system.ready),
            ("GET", "/v1/status", 0, 15, PERMITTED, system.status),
            ("GET", "/v1/metrics", 0, 15, PERMITTED, system.metrics),
            ("GET", "/v1/api", 0, 10, PERMITTED, _apis),
            ("PUT", "/v1/key/create/", 0, 15, PERMITTED, keys.create),
            ("PUT", "/v1/key/import/", MB, 15, PERMITTED, keys.import_),
            ("GET", "/v1/key/describe/", 0, 15, PERMITTED, keys.describe),
            ("GET", "/v1/key/list/", 0, 15, PERMITTED, keys.list_),
            ("DELETE", "/v1/key/delete/", 0, 15, PERMITTED, keys.delete),
            ("PUT", "/v1/key/encrypt/", MB, 15, PERMITTED, keys.encrypt),
            ("PUT", "/v1/key/generate/", MB, 15, PERMITTED, keys.generate),
            ("PUT", "/v1/key/decrypt/", MB, 15, PERMITTED, keys.decrypt),
            ("PUT", "/v1/key/bulk/decrypt/", MIB, 15, PERMITTED, keys.decrypt_bulk),
            ("PUT", "/v1/key/hmac/", MB, 15, PERMITTED, keys.hmac),
            ("GET", "/v1/policy/describe/", 0, 15, PERMITTED, policies.describe),
            ("GET", "/v1/policy/read/", 0, 15, PERMITTED, policies.read),
            ("GET", "/v1/policy/list/", 0, 15, PERMITTED, policies.list_),
            ("PUT", "/v1/policy/write/", MIB, 15, PERMITTED, policies.write),
            ("PUT", "/v1/policy/assign/", 1024, 15, PERMITTED, policies.assign),
            ("DELETE", "/v1/policy/delete/", 0, 15, PERMITTED, policies.delete),
            ("GET", "/v1/identity/describe/", 0, 15, PERMITTED, identities.describe),
            ("GET", "/v1/identity/list/", 0, 15, PERMITTED, identities.list_),
            ("GET", "/v1/identity/self/describe", 0, 15, IDENTIFIED, identities.describe_self),
            ("PUT", "/v1/identity/assign/", 0, 15, PERMITTED, identities.assign),
            ("DELETE", "/v1/identity/forget/", 0, 15, PERMITTED, identities.forget),
            ("DELETE", "/v1/identity/delete/", 0, 15, PERMITTED, identities.forget),
            ("GET", "/v1/log/audit", 0, 0, PERMITTED, logs.audit),
            ("GET", "/v1/log/error", 0, 0, PERMITTED, logs.error),
            # The streams as they were called until 2022, the last as a document of 2021 spells it.
            ("GET", "/v1/log/audit/trace", 0, 0, PERMITTED, logs.audit_trace),
            ("GET", "/v1/log/error/trace", 0, 0, PERMITTED, logs.error),
            ("GET", "/v1/log/log/error/trace", 0, 0, PERMITTED, logs.error),
        )
    )
)

UNKNOWN = len(ROUTES)
"""The index under which requests without a route are counted."""

SKIPPABLE = frozenset({"/version", "/v1/ready", "/v1/status", "/v1/metrics", "/v1/api"})
"""The routes that `api.<path>.skip_auth` may open to callers without a certificate: they show no key and change
nothing."""

APIS = {route.path: route.path in SKIPPABLE for route in ROUTES}
"""What the reader of a configuration has to know of the routes: their paths, and which `skip_auth` may open."""


def handlers(dialect: Dialect) -> tuple[Handler, ...]:
    """What answers in that dialect, by the index of a route."""
    return tuple(dialect.handlers.get(route.path, route.handler) for route in ROUTES)


def body_limits(config: Config) -> list[tuple[str, int]]:
    """Bytes, by the beginning of the path, where a body is read at all."""
    old = DIALECTS[config.dialect].body_limits
    return [(route.path, old.get(route.path, route.max_body)) for route in ROUTES if route.max_body]


def timeouts(config: Config) -> tuple[float, ...]:
    """The time limits of the routes in seconds, 0 for none, by index; the last one is for requests without a route."""
    overridden = {path: api.timeout for path, api in config.api.items()}
    return (*(overridden.get(route.path) or route.timeout for route in ROUTES), 0)


class UncleanPath(Exception):
    """A decoded `path` that could mean one thing to a route and another to a policy. `clean`: what it is cleaned to, or
    None."""

    def __init__(self, path: str, clean: str | None) -> None:
        super().__init__()
        self.path = path
        self.clean = clean


_UNCLEAN = re.compile(r"//|/\.\.?(?:/|\Z)|\0|\A(?!/)").search
_REMEMBERED_LENGTH = 300

_EXACT = {route.path: route for route in ROUTES if not route.path.endswith("/")}
_PREFIX = {route.path: route for route in ROUTES if route.path.endswith("/")}


def resolve(raw: str) -> tuple[Route | None, str, str]:
    """From a path as it was sent: its route, the decoded path, and the resource behind the route's prefix.

    Route, policy and audit log see the one decoded path; what is no UTF-8 in it becomes U+FFFD. Raises UncleanPath.
    """
    # Clients use few paths again and again. Long ones, which only a stranger sends, would fill the memory.
    return _remembered(raw) if len(raw) <= _REMEMBERED_LENGTH else _resolve(raw)


def _resolve(raw: str) -> tuple[Route | None, str, str]:
    path = unquote(raw) if "%" in raw else raw
    if _UNCLEAN(path):
        raise UncleanPath(path, _cleaned(path))
    route, resource = find(path)
    return route, path, resource


_remembered = lru_cache(maxsize=4096)(_resolve)


def _cleaned(path: str) -> str | None:
    if "\0" in path or not path.startswith("/"):
        return None
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            segments = segments[:-1]
        elif segment not in ("", "."):
            segments.append(segment)
    clean = "/" + "/".join(segments)
    return clean + "/" if path.endswith("/") and clean != "/" else clean


def find(path: str) -> tuple[Route | None, str]:
    """The route of a clean, decoded path and the resource behind its prefix.

    Every prefix has three segments, but for bulk decrypt, so one slice and one look-up find it among any number of
    routes.
    """
    end = path.find("/", path.find("/", 4) + 1) + 1
    prefix = path[:end]
    route = _PREFIX.get(prefix)
    if route is not None:
        return route, path[end:]
    route = _EXACT.get(path)
    if route is not None:
        return route, ""
    if prefix == "/v1/key/bulk/":
        end = len("/v1/key/bulk/decrypt/")
        return _PREFIX.get(path[:end]), path[end:]
    return None, ""


def lacking_slash(path: str) -> Route | None:
    """The route whose prefix is the path but for its slash; the client is sent to the slash form."""
    return _PREFIX.get(path + "/")
