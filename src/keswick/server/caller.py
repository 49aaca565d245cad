"""Who sends a request."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from keswick._native import Certificate
from keswick.identity import identity_of
from keswick.server.replies import ApiError


class Problem(NamedTuple):
    """Why a caller cannot be served."""

    status: int
    message: str
    always: bool = False
    """Whether this holds even where nobody has to show a certificate."""

    def error(self) -> ApiError:
        return ApiError(self.status, self.message)


REQUIRED = Problem(400, "tls: client certificate is required")
SEVERAL = Problem(400, "tls: received more than one client certificate")


@dataclass(frozen=True, slots=True)
class Caller:
    """An identity, empty when there is none, and what speaks against it."""

    identity: str
    problem: Problem | None = None


def caller_with(certificates: Sequence[bytes]) -> Caller:
    """Who shows these certificates (DER). Those of authorities are passed over; exactly one other must remain.

    Raises ValueError when one of them is none.
    """
    leaves = [certificate for der in certificates if not (certificate := Certificate(der)).is_ca]
    if len(leaves) == 1:
        return Caller(identity_of(leaves[0].public_key))
    return Caller("", SEVERAL if leaves else REQUIRED)
