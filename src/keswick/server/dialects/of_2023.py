"""The words of 2022 to October 2023, as the release of 2023-04-18 had them."""

import time
from collections.abc import Callable
from typing import Any

import keswick
from keswick.about import COMMIT
from keswick.crypto import SecretKey
from keswick.crypto.algorithms import LONG_NAMES
from keswick.keystore import KeyStoreError
from keswick.policy import PatternError, glob
from keswick.server.access import Assignment, PolicyEntry
from keswick.server.call import Answer, Call
from keswick.server.dialects.dialect import (
    Dialect,
    Words,
    json_lines,
    json_text,
    null_when_empty,
    old_error,
    refusal,
    retyped,
    unless_absent,
)
from keswick.server.handlers import identities, keys, policies, system
from keswick.server.replies import ApiError, Reply, json_reply

MIB = 1 << 20


# --- refusals ---


def _bad_name(what: str) -> Callable[[Call, ApiError], tuple[int, str]]:
    def reword(call: Call, error: ApiError) -> tuple[int, str]:
        name = call.resource
        if not name:
            return 400, f"invalid argument: {what} is empty"
        if len(name) > 80:
            return 400, f"invalid argument: {what} is too long"
        return 400, f"invalid argument: {what} contains invalid character"

    return reword


def _bad_algorithm(call: Call, error: ApiError) -> tuple[int, str]:
    return 400, f"key: invalid algorithm {error.message.removeprefix('algorithm ').removesuffix(' is not supported')}"


_WORDS: Words = {
    "tls: client certificate is required": "no client certificate is present",
    "tls: received more than one client certificate": "too many client certificates are present",
    "invalid import key request body": "invalid request body",
}
_BEGINNINGS = (
    ("invalid key size for ", lambda call, error: (400, "invalid key size")),
    ("algorithm '", _bad_algorithm),
    ("key name '", _bad_name("name")),
    ("policy name '", _bad_name("name")),
    ("identity '", _bad_name("name")),
    ("listing pattern '", _bad_name("pattern")),
)


# --- successes ---


def _version(call: Call) -> Answer:
    return json_text({"version": keswick.__version__, "commit": COMMIT}, end=b"")


async def _status(call: Call) -> Reply:
    """As today, but the time is in nanoseconds."""
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
    matches = _matching(call)
    try:
        names = await call.runtime.blocking(call.state.store.list, "")
    except KeyStoreError as error:
        raise call.failed("failed to list keys", error) from error
    return json_lines([{"name": name} for name in sorted(names) if matches(name)])


def _matching(call: Call) -> Callable[[str], bool]:
    try:
        return glob(call.resource or "*")
    except PatternError:
        raise ApiError(400, f"listing pattern '{call.resource}' is malformed") from None


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
    refuse=refusal(_WORDS, _BEGINNINGS),
    unknown=old_error(501, "not implemented"),
    timeout=old_error(503, "request timeout exceeded"),
    body_limits={f"/v1/key/{operation}/": MIB for operation in _OPERATIONS},
)
