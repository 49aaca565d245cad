"""The native listener as the server sets it up: body limits from the route table, and the replies that it gives by
itself."""

from collections.abc import Callable

from keswick import _native
from keswick._native import Request, Tls
from keswick.server.replies import ApiError, Reply
from keswick.server.routes import ROUTES

OVERLOAD = ApiError(503, "server is overloaded, try again").reply()
TIMEOUT = ApiError(503, "request timeout exceeded").reply()
ERROR = ApiError(500, "internal server error").reply()


def listen(
    handler: Callable[[Request], Reply | None], address: tuple[str, int], certificate: Tls | None
) -> _native.Server:
    """A bound listener that does not accept yet. OSError when the address cannot be had."""
    host, port = address
    return _native.Server(
        handler,
        host=host,
        port=port,
        tls=certificate,
        body_limits=[(route.path, route.max_body) for route in ROUTES if route.max_body],
        replies={"overload": OVERLOAD, "timeout": TIMEOUT, "error": ERROR},
    )
