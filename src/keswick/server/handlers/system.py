"""What the server says of itself: version, readiness, status, metrics, and the routes it serves."""

import os
import time
from typing import Any

import keswick
from keswick._native import Headers
from keswick.about import COMMIT, architecture, operating_system
from keswick.keystore import KeyStoreError, KeyStoreUnreachable
from keswick.server.call import Answer, Call
from keswick.server.metrics import CONTENT_TYPE, resident_memory, stack_memory, usable_cpus
from keswick.server.replies import EMPTY, ApiError, Reply, json_reply

STORE_SECONDS = 5.0
"""How long the key store may take to say how it is."""
STATUS_SECONDS = 1.0
"""How long ago it may have said so: however many ask, the store has no more to do."""

_METRICS = Headers([("Content-Type", CONTENT_TYPE)])


def version(call: Call) -> Answer:
    return json_reply({"version": keswick.__version__, "commit": COMMIT})


async def ready(call: Call) -> Reply:
    """Whether this server can do its work.

    While the key store is away it cannot, except that `?cached=ok` asks for less: that cached keys are still served.
    """
    if call.runtime.draining:
        raise ApiError(503, "server is stopping")
    try:
        await reach_store(call)
    except ApiError:
        if "cached=ok" not in call.request.query.split("&") or not call.state.cache.serves_offline:
            raise
    return EMPTY


async def reach_store(call: Call) -> float:
    """Seconds that the key store took to answer. An outage that is known is told without asking again."""
    cache = call.state.cache
    error = cache.store_error
    if error is None:
        try:
            return await cache.status(STORE_SECONDS, STATUS_SECONDS)
        except KeyStoreError as failure:
            error = failure
    if isinstance(error, KeyStoreUnreachable):
        raise ApiError(504, "key store is not reachable")
    raise ApiError(502, "key store is unavailable")


async def status(call: Call) -> Reply:
    return json_reply(await figures(call))


async def figures(call: Call) -> dict[str, Any]:
    """What the status tells, times in seconds."""
    reply: dict[str, Any] = {
        "version": keswick.__version__,
        "os": operating_system(),
        "arch": architecture(),
        "uptime": int(time.monotonic() - call.runtime.started),
        "num_cpu": os.cpu_count() or 1,
        "num_cpu_used": usable_cpus(),
        "mem_heap_used": resident_memory(),
        "mem_stack_used": stack_memory(),
    }
    try:
        reply["keystore_latency"] = max(1, round(await reach_store(call) * 1000))
    except ApiError:
        reply["keystore_unreachable"] = True
    return reply


def metrics(call: Call) -> Answer:
    return (200, _METRICS, call.runtime.metrics.render())
