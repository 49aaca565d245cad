"""Identities: `/v1/identity/…`: who is assigned to which policy, by the configuration or at run time."""

from typing import Any

from keswick.server.call import Answer, Call
from keswick.server.handlers.policies import assign_policy, bad_identity, names_reply, rules
from keswick.server.replies import EMPTY, ApiError, Reply, json_reply


def describe(call: Call) -> Answer:
    identity, access = call.resource, call.state.access
    if identity == access.admin:
        return json_reply({"admin": True, "created_at": call.runtime.started_at})
    if not call.state.is_role_name(identity):
        raise bad_identity(identity)
    found = access.assignments.get(identity)
    if found is None:
        raise ApiError(404, "identity does not exist")
    return json_reply({"policy": found.policy, "created_at": found.created_at, "created_by": found.created_by})


def list_(call: Call) -> Answer:
    access = call.state.access
    return names_reply(call, "identities", {access.admin, *access.assignments})


def describe_self(call: Call) -> Answer:
    """Answers every caller that has an identity, assigned or not: it tells only what concerns the caller."""
    access = call.state.access
    reply: dict[str, Any] = {"identity": call.identity, "created_at": call.runtime.started_at}
    if call.identity == access.admin:
        reply["admin"] = True
    elif found := access.assignments.get(call.identity):
        reply |= {"created_at": found.created_at, "created_by": found.created_by}
        reply["policy"] = rules(access.policies[found.policy])
    return json_reply(reply)


async def assign(call: Call) -> Reply:
    """`…/<policy>/<identity>`, as until 2022."""
    policy, _, identity = call.resource.partition("/")
    return assign_policy(call, policy, identity)


async def forget(call: Call) -> Reply:
    """Take its policy from an identity; one that has none is left as it is."""
    identity = call.resource
    if not call.state.is_role_name(identity):
        raise bad_identity(identity)
    if identity == call.state.access.admin:
        raise ApiError(400, "identity is root")
    call.runtime.access.forget(identity)
    return EMPTY
