"""Which server is asked, when another one is, and when all of them are asked again.

No input or output: a plan says what to do, and is told what came of it.
"""

from collections.abc import Generator
from typing import TypeAlias, TypeVar

from keswick._native import CallFailed
from keswick.client.endpoint import Endpoint
from keswick.client.errors import (
    APIError,
    ClientRefused,
    ConnectionClosed,
    ConnectionFailed,
    ServerNameMismatch,
    ServerNotTrusted,
    ServerUnreachable,
    TimedOut,
)
from keswick.client.replies import Reply, refused

Answer = TypeVar("Answer")

Pause: TypeAlias = float
"""Seconds."""
Plan: TypeAlias = Generator[Endpoint | Pause, Answer | CallFailed | None, Answer]
"""Yields an endpoint to ask, and is sent what came of it, or a pause, and is sent None. Returns the answer, or raises
what the caller of the client gets."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


class Servers:
    """Servers that share one key store. A call goes to the first that answers, and later calls begin with that one.

    `retries`: how many more rounds there are after all have failed, for what may be better a moment later.
    """

    def __init__(self, endpoints: tuple[Endpoint, ...], retries: int) -> None:
        self.endpoints = endpoints
        """The one that answered last comes first. Replaced, never changed: threads share it."""
        self._retries = retries

    def plan(self, repeatable: bool) -> "Plan[Answer]":
        """The attempts of one call. What is not `repeatable` is sent again only if nothing can have been done."""
        failures: dict[Endpoint, APIError | ConnectionFailed] = {}
        round_of = self.endpoints
        for retry in range(self._retries + 1):
            if retry:
                yield _pause(retry)
            for endpoint in round_of:
                outcome = yield endpoint
                assert outcome is not None
                failure = _failure(endpoint, outcome)
                if failure is None:
                    assert not isinstance(outcome, CallFailed)
                    self._begin_with(endpoint)
                    return outcome
                if not (repeatable or failure.undone):
                    raise failure
                failures[endpoint] = failure
            round_of = tuple(endpoint for endpoint in round_of if failures[endpoint].later)
            if not round_of:
                break
        raise _summary(list(failures.values()))

    def _begin_with(self, endpoint: Endpoint) -> None:
        if self.endpoints[0] != endpoint:
            self.endpoints = (endpoint, *(other for other in self.endpoints if other != endpoint))


def _pause(retry: int) -> Pause:
    """Longer each time, and not the same for all clients that wait for one server."""
    from random import uniform  # late: most calls need no second round

    return min(_FIRST_PAUSE * (1 << retry - 1), _LONGEST_PAUSE) * uniform(0.5, 1.5)  # noqa: S311


def _failure(endpoint: Endpoint, outcome: object) -> APIError | ConnectionFailed | None:
    """Why another server should be asked, if so."""
    if isinstance(outcome, CallFailed):
        return explained(endpoint, outcome)
    if isinstance(outcome, Reply) and outcome.status in (502, 503, 504):
        return refused(outcome)
    return None


def _summary(failures: list[APIError | ConnectionFailed]) -> APIError | ConnectionFailed:
    """What a server said counts more than that others were silent."""
    if len(failures) == 1:
        return failures[0]
    said = next((failure for failure in failures if isinstance(failure, APIError)), None)
    if said is not None:
        return said
    text = "no server answers: " + "; ".join(map(str, failures))
    summary = ConnectionFailed(text, sent=any(not failure.undone for failure in failures))
    summary.__cause__ = failures[0]
    return summary


def explained(endpoint: Endpoint, failure: CallFailed) -> ConnectionFailed:
    """A failed call in words that say what to do."""
    kind, detail, sent = failure.args
    match kind:
        case "refused":
            return ServerUnreachable(f"cannot connect to {endpoint}: connection refused; does a server run there?")
        case "resolve" | "connect":
            return ServerUnreachable(f"cannot connect to {endpoint}: {detail}")
        case "connect_timeout":
            return TimedOut(f"{endpoint} does not let anyone connect in time")
        case "no_tls":
            return ConnectionFailed(f"{endpoint} does not speak TLS")
        case "name":
            return ServerNameMismatch(
                f"the certificate of {endpoint} is not valid for '{endpoint.host}': use a name or address that is in "
                "the certificate, or make one with this name in its subjectAltName"
            )
        case "expired":
            return ServerNotTrusted(f"the certificate of {endpoint} has expired: the server needs a new one")
        case "not_yet_valid":
            return ServerNotTrusted(
                f"the certificate of {endpoint} is not valid yet: see whether the clocks here and there are right"
            )
        case "untrusted":
            return ServerNotTrusted(
                f"the certificate of {endpoint} is not trusted ({detail}): set KES_CA_FILE to a PEM file "
                "with the certificate of the server or of its CA"
            )
        case "alert":
            return _alert(endpoint, detail)
        case "closed":
            return ConnectionClosed(f"{endpoint} closed the connection before its answer was complete", sent=sent)
        case "timeout":
            return TimedOut(f"{endpoint} does not answer in time", sent=sent)
        case "too_long":
            return ConnectionFailed(f"the answer of {endpoint} is too long: {detail}", sent=sent)
        case "protocol":
            return ConnectionFailed(f"{endpoint} does not answer as an HTTP server: {detail}", sent=sent)
        case "tls":
            return ConnectionFailed(f"no TLS connection to {endpoint}: {detail}", sent=sent)
        case _:
            return ConnectionFailed(f"the call of {endpoint} ended ({kind})", sent=sent)


def _alert(endpoint: Endpoint, alert: str) -> ConnectionFailed:
    if alert in ("certificate required", "handshake failure"):
        return ClientRefused(f"{endpoint} demands a client certificate: give an API key, or a certificate and its key")
    if alert == "unknown ca":
        return ClientRefused(
            f"{endpoint} does not accept the client certificate (unknown ca): it verifies its clients, so show a "
            "certificate of an authority that it trusts, which that of an API key is not"
        )
    if "certificate" in alert or alert in ("access denied", "decrypt error"):
        return ClientRefused(f"{endpoint} does not accept the client certificate ({alert})")
    return ConnectionFailed(f"{endpoint} refuses the TLS connection ({alert})")
