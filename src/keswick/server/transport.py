"""The native listener as the server sets it up: body limits from the route table, and the replies that it gives by
itself."""

from collections.abc import Callable, Mapping, Sequence

from keswick import _native
from keswick._native import Request, Tls
from keswick.config import Address, ConfigError, ProxyProtocol
from keswick.server.addresses import to_bind
from keswick.server.replies import INTERNAL_ERROR, TIMEOUT, ApiError, Reply

OVERLOAD = ApiError(503, "server is overloaded, try again").reply()
TOO_LARGE = ApiError(413, "request body is too large").reply()
MALFORMED = ApiError(400, "invalid HTTP request").reply()


def listen(
    handler: Callable[[Request], Reply | None],
    address: Address,
    certificate: Tls | None,
    *,
    body_limits: Sequence[tuple[str, int]] = (),
    limits: Mapping[str, float],
    proxy_protocol: ProxyProtocol | None,
) -> _native.Server:
    """A bound listener that does not accept yet. `limits`: those that are not the native part's own.

    Raises ConfigError when the address cannot be had.
    """
    host, port = to_bind(address)
    try:
        return _native.Server(
            handler,
            host=host,
            port=port,
            tls=certificate,
            body_limits=body_limits,
            limits=dict(limits),
            proxy_protocol=None if proxy_protocol is None else (proxy_protocol.networks, proxy_protocol.timeout),
            replies={
                "overload": OVERLOAD,
                "timeout": TIMEOUT,
                "too_large": TOO_LARGE,
                "malformed": MALFORMED,
                "error": INTERNAL_ERROR,
            },
        )
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
