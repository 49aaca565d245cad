"""Identities: `/v1/identity/…`, read-only in this form."""

from typing import Any

from keswick.names import is_name
from keswick.server.call import Answer, Call
from keswick.server.handlers.policies import names_reply, rules
from keswick.server.replies import ApiError, json_reply


def describe(call: Call) -> Answer:
    identity, state = call.resource, call.state
    if identity == state.admin:
        return json_reply({"admin": True, "created_at": call.runtime.started_at})
    if not is_name(identity):
        raise ApiError(400, f"identity '{identity}' is empty, too long or contains invalid characters")
    policy = state.assigned.get(identity)
    if policy is None:
        raise ApiError(404, "identity does not exist")
    return json_reply({"policy": policy.name, "created_at": call.runtime.started_at, "created_by": state.admin})


def list_(call: Call) -> Answer:
    return names_reply(call, "identities", {call.state.admin, *call.state.assigned})


def describe_self(call: Call) -> Answer:
    """Answers every caller that has an identity, assigned or not: it tells only what concerns the caller."""
    state = call.state
    reply: dict[str, Any] = {"identity": call.identity, "created_at": call.runtime.started_at}
    if call.identity == state.admin:
        reply["admin"] = True
    elif policy := state.assigned.get(call.identity):
        reply |= {"created_by": state.admin, "policy": rules(call, policy)}
    return json_reply(reply)
