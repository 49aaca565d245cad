"""The live log streams: `/v1/log/…`. Headers go out at once, events as they happen, until the client goes."""

from keswick._native import Headers
from keswick.server.call import Answer, Call
from keswick.server.logs import AuditForm
from keswick.server.replies import NDJSON

_UNITS = {unit: Headers([("Content-Type", "application/x-ndjson"), ("X-Time-Unit", unit)]) for unit in ("ms", "ns")}
"""The unit of response times is named, since it is not to be seen in the events."""


def audit(call: Call) -> Answer:
    """Audit events, in the form of the dialect."""
    return _audit(call, call.state.audit_form)


def audit_trace(call: Call) -> Answer:
    """Audit events with times in nanoseconds, as the releases before 2022 sent them."""
    return _audit(call, "ns" if call.state.audit_form == "ms" else call.state.audit_form)


def _audit(call: Call, form: AuditForm) -> Answer:
    stream = call.request.stream(200, _UNITS["ms" if form == "ms" else "ns"])
    call.runtime.audit.subscribe(stream, form=form)
    call.end_in_time(stream)
    return None


def error(call: Call) -> Answer:
    stream = call.request.stream(200, NDJSON)
    call.runtime.errors.subscribe(stream)
    call.end_in_time(stream)
    return None
