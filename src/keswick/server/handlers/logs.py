"""The live log streams: `/v1/log/…`. Headers go out at once, events as they happen, until the client goes."""

from keswick.server.call import Answer, Call
from keswick.server.logs import Unit
from keswick.server.replies import NDJSON


def audit(call: Call) -> Answer:
    """Audit events with times in milliseconds."""
    return _audit(call, "ms")


def audit_trace(call: Call) -> Answer:
    """Audit events with times in nanoseconds, as the releases before 2023 sent them."""
    return _audit(call, "ns")


def _audit(call: Call, unit: Unit) -> Answer:
    stream = call.request.stream(200, NDJSON)
    call.runtime.audit.subscribe(stream, unit=unit)
    call.end_in_time(stream)
    return None


def error(call: Call) -> Answer:
    stream = call.request.stream(200, NDJSON)
    call.runtime.errors.subscribe(stream)
    call.end_in_time(stream)
    return None
