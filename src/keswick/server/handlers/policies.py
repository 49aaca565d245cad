"""Policies: `/v1/policy/…`: the configuration's, made when the server started by its admin, and those written at run
time."""

import time
from functools import partial
from typing import Any

from keswick.encoding import rfc3339
from keswick.names import is_pattern
from keswick.policy import PatternError, Policy
from keswick.server import bodies
from keswick.server.access import LONGEST_POLICY, Assignment, PolicyEntry, TooMuch
from keswick.server.call import Answer, Call
from keswick.server.replies import EMPTY, ApiError, Reply, forbidden, json_reply


def describe(call: Call) -> Answer:
    return json_reply(_origin(named(call)))


def read(call: Call) -> Answer:
    return json_reply(rules(named(call)))


def list_(call: Call) -> Answer:
    return names_reply(call, "names", call.state.access.policies)


async def write(call: Call) -> Reply:
    """Make or overwrite a policy: `{"allow": […], "deny": […]}`, or `{"paths": […]}` as in 2021."""
    name = _policy_name(call, call.resource)
    body = bodies.decode_policy(call.request.body)
    allow, deny = (body.allow if body.paths is None else body.paths) or (), body.deny or ()
    if sum(map(len, (*allow, *deny))) > LONGEST_POLICY:
        raise _no_room()
    try:
        # Away from the main thread, since it takes a second to compile a very long policy.
        compiled = partial(Policy, name, allow, deny, globs_only=call.state.config.globs_only)
        policy = await call.runtime.blocking(compiled)
    except PatternError as error:
        raise ApiError(400, f"invalid policy: {error}") from None
    entry = PolicyEntry(policy, rfc3339(time.time_ns()), call.identity, as_paths=body.paths is not None)
    try:
        call.runtime.access.write_policy(entry)
    except TooMuch:
        raise _no_room() from None
    return EMPTY


async def delete(call: Call) -> Reply:
    name = _policy_name(call, call.resource)
    if not call.runtime.access.delete_policy(name):
        raise ApiError(404, "policy does not exist")
    return EMPTY


async def assign(call: Call) -> Reply:
    """Assign the policy to an identity: `{"identity": …}`."""
    return assign_policy(call, call.resource, bodies.decode_identity(call.request.body))


def assign_policy(call: Call, name: str, identity: str) -> Reply:
    """On the main thread, like all that writes. An identity has one policy; assigning another one moves it."""
    name = _policy_name(call, name)
    if not call.state.is_role_name(identity):
        raise bad_identity(identity)
    if identity == call.state.access.admin:
        raise ApiError(400, "identity is root")
    if call.state.is_proxy(identity):
        raise ApiError(400, "identity is a TLS proxy")
    if identity == call.identity:
        raise ApiError(403, "identity cannot assign policy to itself")
    for path in (f"/v1/policy/assign/{name}", f"/v1/identity/assign/{name}/{identity}"):  # one operation, two names
        if call.state.access.denies(call.identity, path):
            raise forbidden()
    try:
        is_assigned = call.runtime.access.assign(identity, Assignment(name, rfc3339(time.time_ns()), call.identity))
    except TooMuch:
        raise _no_room() from None
    if not is_assigned:
        raise ApiError(404, "policy does not exist")
    return EMPTY


def _no_room() -> ApiError:
    return ApiError(507, "too much is written at run time: policies and assignments belong in the configuration")


def bad_identity(identity: str) -> ApiError:
    return ApiError(400, f"identity '{identity}' is empty, too long or contains invalid characters")


def rules(entry: PolicyEntry) -> dict[str, Any]:
    """A policy as the original writes it: each list is an object of patterns, and left out when empty."""
    reply = _origin(entry)
    for field, patterns in (("allow", entry.policy.allow), ("deny", entry.policy.deny)):
        if patterns:
            reply[field] = {pattern: {} for pattern in patterns}
    return reply


def names_reply(call: Call, field: str, names: Any) -> Reply:
    """All of `names` that begin with the resource, sorted; a trailing `*` says the same."""
    if not is_pattern(call.resource):
        raise ApiError(400, f"listing pattern '{call.resource}' is empty, too long or is invalid")
    prefix = call.resource.removesuffix("*")
    return json_reply({field: sorted(name for name in names if name.startswith(prefix)), "continue_at": ""})


def named(call: Call) -> PolicyEntry:
    """The policy that the resource names. Raises ApiError 400 or 404."""
    entry = call.state.access.policies.get(_policy_name(call, call.resource))
    if entry is None:
        raise ApiError(404, "policy does not exist")
    return entry


def _policy_name(call: Call, name: str) -> str:
    if not call.state.is_role_name(name):
        raise ApiError(400, f"policy name '{name}' is empty, too long or contains invalid characters")
    return name


def _origin(entry: PolicyEntry) -> dict[str, Any]:
    return {"name": entry.policy.name, "created_at": entry.created_at, "created_by": entry.created_by}
