"""The words of 2022 to October 2023, as the release of 2023-04-18 had them."""

import re
import time
from typing import Any

import keswick
from keswick.about import COMMIT
from keswick.crypto import SecretKey
from keswick.crypto.algorithms import LONG_NAMES
from keswick.policy import glob
from keswick.server.access import Assignment, PolicyEntry
from keswick.server.bodies import MIB
from keswick.server.call import Answer, Call
from keswick.server.dialects.dialect import (
    Dialect,
    Glob,
    Words,
    json_lines,
    json_text,
    key_names,
    needs_body,
    null_when_empty,
    old_error,
    refusal,
    retyped,
    unless_absent,
)
from keswick.server.handlers import identities, keys, policies, system
from keswick.server.replies import ApiError, Reply, json_reply

MAX_NAME = 80


# --- refusals ---

_NAME = re.compile("[0-9A-Za-z_-]*").fullmatch
_PATTERN = re.compile("[0-9A-Za-z_*-]*").fullmatch
_NAMED = ("/v1/key/", "/v1/policy/", "/v1/identity/describe/", "/v1/identity/delete/", "/v1/identity/list/")
_LISTS = ("/v1/key/list/", "/v1/policy/list/", "/v1/identity/list/")


def _misnamed(call: Call) -> str:
    """What was said of a name, before anybody looked at policies; nothing when it is sound."""
    if not call.path.startswith(_NAMED):
        return ""
    if call.path.startswith("/v1/identity/assign/"):  # two names, and a path of before that time
        return ""
    is_pattern = call.path.startswith(_LISTS)
    what, fits = ("pattern", _PATTERN) if is_pattern else ("name", _NAME)
    if not call.resource:
        return f"invalid argument: {what} is empty"
    if len(call.resource) > MAX_NAME:
        return f"invalid argument: {what} is too long"
    return "" if fits(call.resource) else f"invalid argument: {what} contains invalid character"


def _bad_name(call: Call, error: ApiError) -> tuple[int, str]:
    """A name may have been sound then, and not be today."""
    return 400, _misnamed(call) or "invalid argument: name contains invalid character"


def _bad_body(call: Call, error: ApiError) -> tuple[int, str]:
    """The words of the JSON parser, as far as they do not tell the place."""
    if call.request.truncated:
        return 400, "http: request body too large"
    return 400, error.message if call.request.body.strip() else "EOF"


def _bad_import(call: Call, error: ApiError) -> tuple[int, str]:
    status, message = _bad_body(call, error)
    return status, message.replace("import key request", "request")


def _bad_algorithm(call: Call, error: ApiError) -> tuple[int, str]:
    name = error.message.removeprefix("algorithm ").removesuffix(" is not supported")
    return 400, f"key: invalid algorithm {name}" if name != "''" else "invalid key size"  # none stood for AES


def _bad_size(call: Call, error: ApiError) -> tuple[int, str]:
    return 400, "invalid key size"


_WORDS: Words = {
    "tls: client certificate is required": "no client certificate is present",
    "tls: received more than one client certificate": "too many client certificates are present",
    "not authorized: client certificate ": "",
    "invalid request body": _bad_body,
    "invalid import key request body": _bad_import,
    "invalid key size for ": _bad_size,
    "algorithm '": _bad_algorithm,
    "key name '": _bad_name,
    "policy name '": _bad_name,
    "identity '' ": "identity is unknown",
    "identity '": _bad_name,
}


# --- successes ---


def _version(call: Call) -> Answer:
    return json_text({"version": keswick.__version__, "commit": COMMIT}, end=b"")


async def _status(call: Call) -> Reply:
    """As today, but the uptime is in nanoseconds."""
    uptime = int((time.monotonic() - call.runtime.started) * 1_000_000_000)
    return json_reply(await system.figures(call) | {"uptime": uptime})


def _describe_key(call: Call) -> Answer:
    def operate(key: SecretKey) -> Reply:
        reply = {
            "name": call.resource,
            "id": key.id,
            "algorithm": LONG_NAMES[key.algorithm],
            "created_at": key.created_at,
        }
        return json_text(reply | ({"created_by": key.created_by} if key.created_by else {}))

    return call.with_key(call.key(), operate)


async def _list_keys(call: Call) -> Reply:
    return json_lines([{"name": name} for name in await key_names(call, _matching(call))])


def _matching(call: Call) -> Glob:
    if message := _misnamed(call):
        raise ApiError(400, message)
    return glob(call.resource)


def _read_policy(call: Call) -> Answer:
    return json_reply(_rules(policies.named(call)))


def _describe_policy(call: Call) -> Answer:
    return json_reply(_origin(policies.named(call)))


def _rules(entry: PolicyEntry) -> dict[str, Any]:
    """Rules are arrays, left out when they are empty."""
    lists = {"allow": entry.policy.allow, "deny": entry.policy.deny}
    return {field: rules for field, rules in lists.items() if rules} | _origin(entry)


def _origin(entry: PolicyEntry | Assignment) -> dict[str, Any]:
    return {"created_at": entry.created_at, "created_by": entry.created_by}


def _list_policies(call: Call) -> Answer:
    matches = _matching(call)
    found = sorted(call.state.access.policies.items())
    return json_lines([{"name": name, **_origin(entry)} for name, entry in found if matches(name)])


def _describe_identity(call: Call) -> Answer:
    access = call.state.access
    if call.resource == access.admin:
        return json_reply({"admin": True, "policy": "", "created_at": call.runtime.started_at})
    found = access.assignments.get(call.resource)
    if found is None:
        return identities.describe(call)  # which says why not
    return json_reply({"policy": found.policy, **_origin(found)})


def _list_identities(call: Call) -> Answer:
    """The admin is not among them."""
    matches = _matching(call)
    found = sorted(call.state.access.assignments.items())
    return json_lines(
        [
            {"identity": identity, "admin": False, "policy": assignment.policy, **_origin(assignment)}
            for identity, assignment in found
            if matches(identity)
        ]
    )


def _describe_self(call: Call) -> Answer:
    access = call.state.access
    found = access.assignments.get(call.identity)
    if call.identity == access.admin or found is None:
        return identities.describe_self(call)
    reply = {"identity": call.identity, "policy_name": found.policy, **_origin(found)}
    return json_reply(reply | {"policy": _rules(access.policies[found.policy])})


_HANDLERS = {
    "/version": _version,
    "/v1/status": _status,
    "/v1/key/describe/": _describe_key,
    "/v1/key/delete/": unless_absent(keys.delete),
    "/v1/key/generate/": needs_body(keys.generate),
    "/v1/key/decrypt/": retyped(keys.decrypt, null_when_empty),
    "/v1/key/list/": _list_keys,
    "/v1/policy/describe/": _describe_policy,
    "/v1/policy/read/": _read_policy,
    "/v1/policy/list/": _list_policies,
    "/v1/policy/delete/": unless_absent(policies.delete),
    "/v1/identity/describe/": _describe_identity,
    "/v1/identity/list/": _list_identities,
    "/v1/identity/self/describe": _describe_self,
}

_OPERATIONS = ("import", "generate", "encrypt", "decrypt", "bulk/decrypt")

DIALECT = Dialect(
    "2023",
    handlers=_HANDLERS,
    refuse=refusal(_WORDS, first=_misnamed),
    unknown=old_error(501, "not implemented"),
    posts=True,
    timeout=old_error(503, "request timeout exceeded"),
    body_limits={f"/v1/key/{operation}/": MIB for operation in _OPERATIONS},
)
