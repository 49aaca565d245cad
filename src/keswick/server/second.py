"""The second listener, `metrics.address`: metrics and readiness for programs that have no client certificate.

It shows no key name and no identity, and nothing can be changed through it.
"""

from functools import partial

from keswick.server.call import Answer, Call
from keswick.server.replies import NOT_FOUND, ApiError
from keswick.server.routes import find
from keswick.server.service import Service

_PATHS = {"/v1/metrics": "/v1/metrics", "/metrics": "/v1/metrics", "/v1/ready": "/v1/ready"}


class MetricsListener:
    """Answers `/v1/metrics`, `/metrics` and `/v1/ready`; everything else is not found."""

    def __init__(self, service: Service) -> None:
        self.handle = partial(service.answer, self._walk, service.runtime.metrics.recorder())

    def _walk(self, call: Call) -> Answer:
        call.path = call.request.path
        route, _ = find(_PATHS.get(call.path, ""))
        if route is None:
            return NOT_FOUND
        call.api, call.path = route.index, route.path
        if call.request.method != "GET":
            raise ApiError(405, f"received method '{call.request.method}' expected 'GET'", headers=route.refusal)
        return route.handler(call)
