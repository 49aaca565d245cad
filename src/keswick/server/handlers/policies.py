"""Policies: `/v1/policy/…`, read-only in this form. They are the configuration's, made when the server started by its
admin."""

from typing import Any

from keswick.names import is_name, is_pattern
from keswick.policy import Policy
from keswick.server.call import Answer, Call
from keswick.server.replies import ApiError, Reply, json_reply


def describe(call: Call) -> Answer:
    return json_reply(_origin(call, _named(call)))


def read(call: Call) -> Answer:
    return json_reply(rules(call, _named(call)))


def list_(call: Call) -> Answer:
    return names_reply(call, "names", call.state.policies)


def rules(call: Call, policy: Policy) -> dict[str, Any]:
    """A policy as the original writes it: each list is an object of patterns, and left out when empty."""
    reply = _origin(call, policy)
    for field, patterns in (("allow", policy.allow), ("deny", policy.deny)):
        if patterns:
            reply[field] = {pattern: {} for pattern in patterns}
    return reply


def names_reply(call: Call, field: str, names: Any) -> Reply:
    """All of `names` that begin with the resource, sorted; a trailing `*` says the same."""
    if not is_pattern(call.resource):
        raise ApiError(400, f"listing pattern '{call.resource}' is empty, too long or is invalid")
    prefix = call.resource.removesuffix("*")
    return json_reply({field: sorted(name for name in names if name.startswith(prefix)), "continue_at": ""})


def _named(call: Call) -> Policy:
    name = call.resource
    if not is_name(name):
        raise ApiError(400, f"policy name '{name}' is empty, too long or contains invalid characters")
    policy = call.state.policies.get(name)
    if policy is None:
        raise ApiError(404, "policy does not exist")
    return policy


def _origin(call: Call, policy: Policy) -> dict[str, Any]:
    return {"name": policy.name, "created_at": call.runtime.started_at, "created_by": call.state.admin}
