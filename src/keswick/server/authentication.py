"""From a connection's certificates to an identity, once per connection, and from an identity to permission, once per
request."""

from keswick._native import Certificate, Connection
from keswick.identity import identity_of
from keswick.server.replies import ApiError
from keswick.server.routes import ANYONE, PERMITTED, Route
from keswick.server.state import State


class Caller:
    """Who is at the other end of a connection: an identity, or why there is none."""

    __slots__ = ("identity", "problem")

    def __init__(self, certificates: list[bytes]) -> None:
        """Certificates of authorities are passed over; exactly one other must remain."""
        leaves = [certificate for der in certificates if not (certificate := Certificate(der)).is_ca]
        self.identity = identity_of(leaves[0].public_key) if len(leaves) == 1 else ""
        self.problem = (
            "tls: client certificate is required"
            if not leaves
            else "tls: received more than one client certificate"
            if len(leaves) > 1
            else ""
        )


def caller_of(connection: Connection) -> Caller:
    caller: Caller | None = connection.state
    if caller is None:
        try:
            caller = Caller(connection.certificates)
        except ValueError:  # a further certificate of the chain, which no handshake looked at, is no certificate
            caller = Caller([])
        connection.state = caller
    return caller


def authorize(state: State, route: Route, path: str, caller: Caller) -> None:
    """Raises ApiError: 400 without one certificate, 403 when it may not. A refused, an unassigned and an unknown
    identity look the same."""
    if route.access is ANYONE or path in state.open:
        return
    if caller.problem:
        raise ApiError(400, caller.problem)
    if route.access is PERMITTED and not state.access.permits(caller.identity, path):
        raise ApiError(403, "not authorized: insufficient permissions")
