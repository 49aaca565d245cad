"""The words of 2020 and 2021: v0.13.4, and v0.17.6 where it differed."""

import dataclasses
import time
from typing import Any

import keswick
from keswick._native import Headers
from keswick.policy import PatternError, glob
from keswick.server.access import PolicyEntry
from keswick.server.bodies import MIB
from keswick.server.call import Answer, Call
from keswick.server.dialects.dialect import (
    Dialect,
    Glob,
    Words,
    as_text,
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
from keswick.server.handlers import keys, policies, system
from keswick.server.replies import ApiError, Reply, json_reply

# Clients of the time take a list for whole only when it says so behind its lines, in trailers or in headers.
_LIST = Headers([("Content-Type", "application/x-ndjson"), ("Status", "200"), ("Error", "")])


# --- refusals ---


def _pattern(call: Call) -> str:
    """The path that the route had, as these servers wrote it down."""
    prefix = call.path.removesuffix(call.resource)
    return prefix + ("*/*" if prefix == "/v1/identity/assign/" else "*")


def _misplaced(call: Call) -> str:
    """What was said of a path with more segments, or fewer, before anybody looked at policies."""
    pattern = _pattern(call)
    return _not_like(pattern) if call.path.count("/") != pattern.count("/") and call.resource else ""


def _not_like(pattern: str) -> str:
    return f"request URL path does not match API pattern: {pattern}"


def _bad_name(call: Call, error: ApiError) -> tuple[int, str]:
    is_empty = " '' " in error.message
    return 400, _misplaced(call) or (_not_like(_pattern(call)) if is_empty else error.message)


def _bad_identity(call: Call, error: ApiError) -> tuple[int, str]:
    in_body = call.path.startswith("/v1/policy/assign/")
    return (400, "identity is unknown") if in_body else _bad_name(call, error)


def _invalid_key(call: Call, error: ApiError) -> tuple[int, str]:
    return 400, "invalid key"


def _several(call: Call, error: ApiError) -> tuple[int, str]:
    """What v0.13.4 said of too many certificates. Where there were proxies, they were looked for first, as later."""
    has_proxies = call.state.forwarding is not None
    return 400, _SEVERAL if has_proxies else "too many identities: more than one certificate is present"


_SEVERAL = "too many client certificates are present"
_WORDS_2022: Words = {
    "not authorized: insufficient permissions": "prohibited by policy",
    "tls: client certificate is required": "no client certificate is present",
    "tls: received more than one client certificate": _SEVERAL,
    "not authorized: client certificate ": "",
    "key already exists": "key does already exist",
    "invalid request body": "invalid json",
    "invalid import key request body": "invalid json",
    "invalid policy: ": "invalid json",
    "invalid key size for ": _invalid_key,
    "algorithm '": _invalid_key,
    "failed to create key": "bad gateway: failed to create key",
    "failed to read key": "bad gateway: failed to access key",
    "failed to delete key": "bad gateway: failed to delete key",
    "failed to list keys": "bad gateway: failed to list keys",
    "key name '": _bad_name,
    "policy name '": _bad_name,
    "identity '": _bad_identity,
}
_WORDS_2021 = {
    **_WORDS_2022,
    "tls: received more than one client certificate": _several,
    "decryption failed: ciphertext is not authentic": "ciphertext is not authentic",
}


# --- successes ---


def _version(call: Call) -> Answer:
    return json_text({"version": keswick.__version__}, end=b"")


async def _status(call: Call) -> Reply:
    """What v0.17.6 said; v0.13.4 had nothing of the kind. Times are in nanoseconds."""
    try:
        milliseconds = round(await system.reach_store(call) * 1000)
        store: dict[str, Any] = {"state": "available"}
        if milliseconds:
            store["latency"] = milliseconds * 1_000_000
    except ApiError as error:
        store = {"state": "unreachable" if error.status == 504 else "reachable"}
    uptime = int((time.monotonic() - call.runtime.started) * 1_000_000_000)
    return json_reply({"version": keswick.__version__, "uptime": uptime, "kms": store})


async def _list_keys(call: Call) -> Reply:
    return json_lines([{"Name": name} for name in await key_names(call, _matching(call))], _LIST)


def _matching(call: Call) -> Glob:
    """Names were listed by globs. Nothing, where a pattern should be, is taken for all."""
    if message := _misplaced(call):
        raise ApiError(400, message)
    try:
        return glob(call.resource or "*")
    except PatternError:
        raise ApiError(400, "syntax error in pattern") from None


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


def _decrypted(reply: Reply) -> Reply:
    return as_text(null_when_empty(reply))


_HANDLERS_2022 = {
    "/version": _version,
    "/v1/status": _status,
    "/v1/key/delete/": unless_absent(keys.delete),
    "/v1/key/generate/": needs_body(retyped(keys.generate, as_text)),
    "/v1/key/encrypt/": retyped(keys.encrypt, as_text),
    "/v1/key/decrypt/": retyped(keys.decrypt, _decrypted),
    "/v1/key/list/": _list_keys,
    "/v1/policy/read/": _read_policy,
    "/v1/policy/list/": _list_policies,
    "/v1/policy/delete/": unless_absent(policies.delete),
    "/v1/identity/list/": _list_identities,
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
    refuse=refusal(_WORDS_2022, first=_misplaced),
    redirect=301,
    posts=True,
    timeout=old_error(503, "timeout"),
    body_limits=_LIMITS,
)

DIALECT = dataclasses.replace(
    LATE,
    name="2021",
    handlers={**_HANDLERS_2022, "/v1/policy/read/": _read_policy_2021},
    refuse=refusal(_WORDS_2021, first=_misplaced),
)
