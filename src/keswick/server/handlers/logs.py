"""The live log streams: `/v1/log/…`. Headers go out at once, events as they happen, until the client goes."""

from ..call import Answer, Call
from ..logs import Unit
from ..replies import NDJSON


def audit(call: Call) -> Answer:
    """Audit events with times in milliseconds."""
    return _audit(call, "ms")


def audit_trace(call: Call) -> Answer:
    """Audit events with times in nanoseconds, as the releases before 2023 sent them."""
    return _audit(call, "ns")


def _audit(call: Call, unit: Unit) -> Answer:
    stream = call.request.stream(200, NDJSON)
    call.service.audit.subscribe(stream, unit=unit)
    call.service.limit_stream(call, stream)
    return None


def error(call: Call) -> Answer:
    stream = call.request.stream(200, NDJSON)
    call.service.errors.subscribe(stream)
    call.service.limit_stream(call, stream)
    return None
