"""Calls with a token that a service gives for a time.

The token is renewed when half of that time is over, by a thread in the background, which goes on trying whatever
happens. A call that the service refuses because of its token is made once more, with a new one.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from keswick.keystore.contract import KeyStoreError, KeyStoreUnreachable

if TYPE_CHECKING:
    from keswick.keystore.http import Answer, HttpService

RETRY_SECONDS = 5.0
"""After a failure. For as long no call logs in again with credentials that were refused: accounts may be locked."""
SHORTEST_LIFE, LONGEST_LIFE = 1.0, 86400.0
"""Seconds. A token that lives shorter or longer is renewed as if it lived so long."""


@dataclass(frozen=True, slots=True)
class Token:
    text: str = field(repr=False)
    seconds: float
    """How long it is valid."""


def is_token(text: object) -> bool:
    """Whether it can stand in a header."""
    return isinstance(text, str) and text.isascii() and text.isprintable() and len(text.split()) == 1


class Session:
    """`obtain(old, until)` asks for a token, before that moment of `time.monotonic`. `old`, if any, should still be
    valid and may be exchanged; otherwise it has to log in. It raises KeyStoreError, as does the making of a session.
    """

    def __init__(self, http: "HttpService", obtain: Callable[[str | None, float], Token]) -> None:
        self._http = http
        self._obtain = obtain
        self._obtaining = threading.Lock()
        """Held by the one who does."""
        self._refused = ""
        """Why the last try to log in was refused, if it was."""
        self._changed = threading.Condition()
        """Told when one of the next two changes."""
        self._closed = False
        self._token = obtain(None, http.deadline())
        self._due = time.monotonic() + self._half_of_its_life()
        threading.Thread(target=self._keep_renewing, name=f"login to {http.service}", daemon=True).start()

    def call(self, send: "Callable[[str], Answer]", until: float) -> "Answer":
        """The answer to `send(token)`, or to a second one if the first is refused with 401 and there is a new token
        before that moment."""
        token = self._token.text
        first = send(token)
        if first.status != 401:
            return first
        second = send(self._other_than(token, until))
        return replace(second, retried=first.retried or second.retried)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _other_than(self, refused: str, until: float) -> str:
        """A new token; of many calls that ask at once, one logs in."""
        if not self._obtaining.acquire(timeout=max(0.0, until - time.monotonic())):
            raise KeyStoreUnreachable(f"{self._http.service}: logging in again takes too long")
        try:
            if self._token.text == refused:
                if self._refused and time.monotonic() < self._due:
                    raise KeyStoreError(self._refused)
                self._renew(None, until)
            return self._token.text
        finally:
            self._obtaining.release()

    def _keep_renewing(self) -> None:
        while self._wait_until_due():
            with self._obtaining:
                if time.monotonic() < self._due:  # somebody else did it
                    continue
                try:
                    self._renew(self._token.text, self._http.deadline())
                except Exception:  # noqa: S112 - whoever needs a token and has none is told why
                    continue

    def _wait_until_due(self) -> bool:
        """False when it is closed."""
        with self._changed:
            while not self._closed and (left := self._due - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._closed

    def _renew(self, old: str | None, until: float) -> None:
        refused, pause = "", RETRY_SECONDS
        try:
            self._token = self._obtain(old, until)
            pause = self._half_of_its_life()
        except KeyStoreUnreachable:
            raise
        except KeyStoreError as error:
            refused = str(error)
            raise
        finally:
            with self._changed:
                self._refused, self._due = refused, time.monotonic() + pause
                self._changed.notify_all()

    def _half_of_its_life(self) -> float:
        return min(max(self._token.seconds, SHORTEST_LIFE), LONGEST_LIFE) / 2
