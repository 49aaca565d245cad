"""From a request to who sent it, and from an identity to permission.

The certificates of a connection make an identity once. When it is that of a TLS proxy, each request has a sender of its
own, whom the proxy names.
"""

from keswick._native import Connection
from keswick.server.call import Call
from keswick.server.caller import REQUIRED, Caller, caller_with
from keswick.server.replies import forbidden
from keswick.server.routes import ANYONE, PERMITTED, Route
from keswick.server.state import State


def identify(call: Call) -> Caller:
    """Who sent the request; the call knows it from now on, and the proxy that it came through."""
    connection = call.request.connection
    caller: Caller | None = connection.state
    if caller is None:
        caller = connection.state = _at_the_end_of(connection)
    forwarding = call.state.forwarding
    if forwarding is not None and caller.identity in forwarding.proxies:
        call.via = caller.identity
        caller = forwarding.caller_of(call.request)
    call.identity = caller.identity
    return caller


def _at_the_end_of(connection: Connection) -> Caller:
    try:
        return caller_with(connection.certificates)
    except ValueError:  # a further certificate of the chain, which no handshake looked at, is no certificate
        return Caller("", REQUIRED)


def authorize(state: State, route: Route, path: str, caller: Caller) -> None:
    """Raises ApiError: 400 without one certificate, 403 when it may not. A refused, an unassigned and an unknown
    identity look the same."""
    problem = caller.problem
    if route.access is ANYONE or path in state.open:
        if problem is not None and problem.always:
            raise problem.error()
        return
    if problem is not None:
        raise problem.error()
    if route.access is PERMITTED and not _permits(state, route, path, caller.identity):
        raise forbidden()


def _permits(state: State, route: Route, path: str, identity: str) -> bool:
    """What a policy denies under one name of an operation, it denies under all."""
    if not state.access.permits(identity, path):
        return False
    if not route.other_names:  # nor has any of the busiest but one
        return True
    resource = path.removeprefix(route.path)
    return not any(state.access.denies(identity, name + resource) for name in route.other_names)
