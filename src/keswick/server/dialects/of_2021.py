"""The words of 2020 and 2021: v0.13.4, and v0.17.6 where it differed."""

import time
from typing import Any

import keswick
from keswick._native import Headers
from keswick.keystore import KeyStoreError
from keswick.policy import PatternError, glob
from keswick.server.access import PolicyEntry
from keswick.server.call import Answer, Call
from keswick.server.dialects.dialect import (
    Dialect,
    as_text,
    json_lines,
    json_text,
    null_when_empty,
    old_error,
    refusal,
    retyped,
    unless_absent,
)
from keswick.server.handlers import keys, logs, policies, system
from keswick.server.replies import ApiError, Reply

MIB = 1 << 20

# Clients of the time take a list for whole only when it says so behind its lines, in trailers or in headers.
_LIST = Headers([("Content-Type", "application/x-ndjson"), ("Status", "200"), ("Error", "")])


# --- refusals ---


def _not_the_pattern(call: Call, error: ApiError) -> tuple[int, str]:
    """What these servers said of a name that is not one segment of a path."""
    pattern = call.path.removesuffix(call.resource) + "*"
    if pattern == "/v1/identity/assign/*":
        pattern += "/*"
    return 400, f"request URL path does not match API pattern: {pattern}"


_WORDS_2022 = {
    "not authorized: insufficient permissions": "prohibited by policy",
    "tls: client certificate is required": "no client certificate is present",
    "tls: received more than one client certificate": "too many client certificates are present",
    "key already exists": "key does already exist",
    "invalid request body": "invalid json",
    "invalid import key request body": "invalid json",
    "failed to create key": "bad gateway: failed to create key",
    "failed to read key": "bad gateway: failed to access key",
    "failed to delete key": "bad gateway: failed to delete key",
    "failed to list keys": "bad gateway: failed to list keys",
}
_WORDS_2021 = _WORDS_2022 | {
    "tls: received more than one client certificate": "too many identities: more than one certificate is present",
    "decryption failed: ciphertext is not authentic": "ciphertext is not authentic",
}
_BEGINNINGS = (
    ("received method ", lambda call, error: (405, "Method Not Allowed")),
    ("invalid key size for ", lambda call, error: (400, "invalid key")),
    ("algorithm '", lambda call, error: (400, "invalid key")),
    ("invalid policy: ", lambda call, error: (400, "invalid json")),
    ("key name '", _not_the_pattern),
    ("policy name '", _not_the_pattern),
    ("identity '", _not_the_pattern),
    ("listing pattern '", _not_the_pattern),
)


# --- successes ---


def _version(call: Call) -> Answer:
    return json_text({"version": keswick.__version__}, end=b"")


async def _status(call: Call) -> Reply:
    """What v0.17.6 said; v0.13.4 had nothing of the kind. Times are in nanoseconds."""
    try:
        latency = await system.reach_store(call)
        store: dict[str, Any] = {"state": "available", "latency": max(1, round(latency * 1000)) * 1_000_000}
    except ApiError as error:
        store = {"state": "unreachable" if error.status == 504 else "reachable"}
    uptime = int((time.monotonic() - call.runtime.started) * 1_000_000_000)
    return json_text({"version": keswick.__version__, "uptime": uptime, "kms": store}, headers=_JSON)


_JSON = Headers([("Content-Type", "application/json")])


async def _list_keys(call: Call) -> Reply:
    matches = _matching(call)
    try:
        names = await call.runtime.blocking(_all_names, call)
    except KeyStoreError as error:
        raise call.failed("failed to list keys", error) from error
    return json_lines([{"Name": name} for name in names if matches(name)], _LIST)


def _all_names(call: Call) -> list[str]:
    return sorted(call.state.store.list(""))


def _matching(call: Call) -> Any:
    """Names were listed by globs. Nothing, where a pattern should be, is taken for all."""
    try:
        return glob(call.resource or "*")
    except PatternError:
        raise ApiError(400, f"listing pattern '{call.resource}' is malformed") from None


def _read_policy(call: Call) -> Answer:
    return json_text(_rules(policies.named(call), paths=False))


def _read_policy_2021(call: Call) -> Answer:
    return json_text(_rules(policies.named(call), paths=True))


def _rules(entry: PolicyEntry, *, paths: bool) -> dict[str, Any]:
    """As it was written: `paths` know of no deny rules."""
    policy = entry.policy
    if paths and entry.as_paths and not policy.deny:
        return {"paths": policy.allow}
    return {"allow": policy.allow, "deny": policy.deny}


def _list_policies(call: Call) -> Answer:
    matches = _matching(call)
    return json_text(sorted(name for name in call.state.access.policies if matches(name)))


def _list_identities(call: Call) -> Answer:
    """As v0.17.6 wrote them, which the clients of v0.13 read too. The admin is not among them."""
    matches = _matching(call)
    found = sorted((who, what.policy) for who, what in call.state.access.assignments.items() if matches(who))
    return json_lines([{"identity": identity, "policy": policy} for identity, policy in found], _LIST)


_HANDLERS_2022 = {
    "/version": _version,
    "/v1/status": _status,
    "/v1/key/delete/": unless_absent(keys.delete),
    "/v1/key/generate/": retyped(keys.generate, as_text),
    "/v1/key/encrypt/": retyped(keys.encrypt, as_text),
    "/v1/key/decrypt/": retyped(retyped(keys.decrypt, null_when_empty), as_text),
    "/v1/key/list/": _list_keys,
    "/v1/policy/read/": _read_policy,
    "/v1/policy/list/": _list_policies,
    "/v1/policy/delete/": unless_absent(policies.delete),
    "/v1/identity/list/": _list_identities,
    "/v1/log/audit/trace": logs.audit,
}

_LIMITS = {
    "/v1/key/import/": MIB,
    "/v1/key/generate/": MIB,
    "/v1/key/encrypt/": MIB // 2,
    "/v1/key/decrypt/": MIB,
}

LATE = Dialect(
    "2022",
    handlers=_HANDLERS_2022,
    refuse=refusal(_WORDS_2022, _BEGINNINGS),
    timeout=old_error(503, "timeout"),
    body_limits=_LIMITS,
)

DIALECT = Dialect(
    "2021",
    handlers=_HANDLERS_2022 | {"/v1/policy/read/": _read_policy_2021},
    refuse=refusal(_WORDS_2021, _BEGINNINGS),
    timeout=old_error(503, "timeout"),
    body_limits=_LIMITS,
)
