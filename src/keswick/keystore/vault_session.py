"""A session with OpenBao or HashiCorp Vault: a token that is kept valid, and whether the server is sealed.

A thread in the background asks every few seconds whether it is sealed, and when 80 % of the token's time are over, has
it renewed or logs in anew. It goes on trying whatever happens. While the server is known to be sealed, calls fail at
once. A call that is refused since the token is no longer valid is made once more, with a new one.

Standbys of a cluster may answer from a state that is some milliseconds old. Answers name the state that they are from,
and calls say which one they must not be older than, so that what this session has seen it goes on seeing.
"""

import base64
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from keswick.keystore import http
from keswick.keystore.contract import KeyStoreError, KeyStoreUnreachable
from keswick.keystore.http import Answer, HttpService
from keswick.keystore.renewal import is_token

RENEW_AT = 0.8
"""Of a token's time."""
SHORTEST_PAUSE = 0.5
"""Seconds between two renewals, however short a token lives."""
RETRY_SECONDS = 3.0
"""After a login that was refused, and between two questions while the server is sealed."""
UNSURE_SECONDS = 60.0
"""Between two logins for calls that are refused, where a token may not ask whether it is valid."""
WRONG_SECRET_SECONDS = 240.0
"""Between two logins with an AppRole that was wrong. The server locks a role for all who use it, by default after five
wrong logins within 15 minutes."""
CLOSE_SECONDS = 1.0

HEALTH = "sys/health?drsecondarycode=299&performancestandbycode=299&sealedcode=299&standbycode=299&uninitcode=299"
_FIRST_RETRY, _DOUBLINGS = 0.5, 3
"""Seconds after a login that failed, and how often they are doubled."""
_LONGEST_WAIT = 3600.0
"""Seconds, which every system can wait for."""


@dataclass(frozen=True, slots=True)
class Login:
    method: str
    """Where the method is mounted, such as `auth/approle`; empty where the credentials are a `token`, of which others
    take care."""
    credentials: Callable[[], Mapping[str, str]] = field(repr=False)
    """Made anew for each login. Raises KeyStoreError."""
    namespace: str
    """Empty for none."""
    advice: str
    """What to look at when it is refused."""
    wrong_seconds: float
    """How long to wait when they are wrong, since the server may lock what is wrong too often."""


@dataclass(frozen=True, slots=True)
class Token:
    text: str = field(repr=False)
    renewable: bool
    seconds: float
    """How long it is valid; 0: for ever."""
    granted: float
    """The same, when it was new. Renewals grant less when the token nears the end of what its role allows."""
    since: float
    """When it was asked for, by `time.monotonic`."""
    may_ask: bool
    """Whether it can be relied upon to tell whether it is valid."""

    @property
    def renew_at(self) -> float:
        return self.since + max(self.seconds * RENEW_AT, SHORTEST_PAUSE) if self.seconds else math.inf

    @property
    def expired(self) -> bool:
        return bool(self.seconds) and time.monotonic() >= self.since + self.seconds


class _Refused(KeyStoreError):
    """Of a login, which is not tried again for a while."""

    def __init__(self, words: str, pause: float) -> None:
        super().__init__(words)
        self.pause = pause


def new_service(name: str, settings: Mapping[str, str], section: str = "") -> HttpService:
    """`name`: what errors call it; `section`: what stands before the names of these settings where errors show them."""
    return HttpService(
        name,
        settings["endpoint"],
        ca=settings.get("tls.ca"),
        only_ca=True,
        ca_setting=f"{section}tls.ca",
        certificate=(settings["tls.cert"], settings["tls.key"]) if "tls.cert" in settings else None,
        should_retry=worth_another_try,
    )


def parts(path: str) -> str:
    """A path of settings, without slashes that mean nothing. Percent-encoded."""
    return "/".join(quote(part, safe="") for part in path.split("/") if part)


def worth_another_try(status: int) -> bool:
    """307: a standby that does not reach the active server, as when another one becomes that; 412: one that has not
    caught up with what this session has seen."""
    return (status >= 500 and status != 501) or status in (307, 412)


def tries(until: float) -> Iterator[bool]:
    """For something that may be tried several times, with pauses between: whether it is the last time."""
    for left in range(http.RETRIES, -1, -1):
        pause = http.pause_seconds()
        last = not left or time.monotonic() + pause >= until
        yield last
        if last:
            return
        time.sleep(pause)


class Session:
    """Logs in before `until`, a moment of `time.monotonic`, and stays so until it is closed. `section` as for the
    service; `ping`: how often to ask whether the server is sealed, in seconds.

    Raises KeyStoreUnreachable when the server is away or sealed, KeyStoreError when it refuses the login.
    """

    def __init__(
        self,
        service: HttpService,
        settings: Mapping[str, str],
        until: float,
        *,
        section: str = "",
        ping: float = math.inf,
    ) -> None:
        self._service = service
        self.namespace = _namespace(service.service, settings.get("namespace", ""), f"{section}namespace")
        """Of the calls; empty for none."""
        self._login = _login(service.service, settings, section, self.namespace)
        self._ping = ping
        self._sealed = False
        self._index = ""
        """The newest state of the server that was seen."""
        self._logging_in = threading.Lock()
        """Held by the one who does."""
        self._changed = threading.Condition()
        """Told when one of the following changes."""
        self._closed = False
        self._trouble = ""
        """Why the last try to log in failed, if it did."""
        self._refused = False
        """Whether it was refused, so that it is not tried again before `_renew_at`."""
        self._failures = 0
        self._renew_at = math.inf
        self._ping_at = time.monotonic() + ping
        self._login.credentials()  # what is wrong with them is told before anything is called
        self._ask_health(until)
        self._token = self._new_token(until)
        self._renew_at = self._token.renew_at
        self._keeper = threading.Thread(target=self._keep, name="login to vault", daemon=True)
        self._keeper.start()

    def call(self, method: str, path: str, until: float, *, body: Any = None, retries: int = http.RETRIES) -> Answer:
        """The answer to a call of `/v1/<path>`, which is percent-encoded. Raises KeyStoreUnreachable when none came
        before `until`, a moment of `time.monotonic`, or the server is sealed."""
        if self._sealed:
            raise self._is_sealed()
        if self._closed:
            raise KeyStoreError(f"{self._service.service} is closed")

        def send(token: Token) -> Answer:
            answer = self._send(method, path, until, token, self.namespace, body=body, retries=retries)
            if answer.status == 503 and "sealed" in self.said(answer):
                self._note(sealed=True)
                raise self._is_sealed()
            return answer

        token = self._token
        answer = send(token)
        if answer.status == 403:
            another = self._other_than(token, until)
            if another is not None:
                answer = send(another)
        return answer

    @staticmethod
    def said(answer: Answer) -> str:
        """The server's own words for an error."""
        match answer.json():
            case {"errors": [*errors]}:
                return "; ".join(" ".join(error.split()) for error in errors if isinstance(error, str))
        return ""

    def status(self, until: float) -> float:
        """How long the server took to say that it is well, in seconds. Raises KeyStoreError when there is no valid
        token and no way to a new one."""
        seconds = self._ask_health(until)
        if self._trouble and not self._is_valid(self._token, until):
            raise KeyStoreError(self._trouble)
        return seconds

    def close(self) -> None:
        """The token is revoked, so that tokens do not pile up in the server. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._keeper.join(CLOSE_SECONDS)

    # --- is it sealed? ---

    def _ask_health(self, until: float) -> float:
        begin = time.perf_counter()
        # Without a namespace: health belongs to the whole server.
        answer = self._send("GET", HEALTH, until)
        seconds = time.perf_counter() - begin
        match answer.json():
            case {"initialized": bool(initialized), "sealed": bool(sealed)} if answer.status in (200, 299):
                self._note(sealed=sealed or not initialized)
            case _ if answer.status in (200, 299):
                raise KeyStoreError(
                    f"{self._service.service}: what is at {self._service.endpoint} is neither OpenBao nor Vault: is it "
                    "the right endpoint?"
                )
            case _:
                raise self._service.unexpected(answer, self.said(answer))
        if not initialized:
            raise KeyStoreUnreachable(
                f"{self._service.service} at {self._service.endpoint} is not initialized: 'bao operator init' does that"
            )
        if sealed:
            raise self._is_sealed()
        return seconds

    def _is_sealed(self) -> KeyStoreUnreachable:
        return KeyStoreUnreachable(f"{self._service.service} at {self._service.endpoint} is sealed: unseal it")

    def _note(self, *, sealed: bool) -> None:
        if sealed != self._sealed:
            with self._changed:
                self._sealed = sealed
                self._ping_at = time.monotonic() + min(self._ping, RETRY_SECONDS)
                self._changed.notify_all()

    # --- is the token valid? ---

    def _other_than(self, token: Token, until: float) -> Token | None:
        """A token for a call that was refused with this one; None if it was refused for another reason. Of many calls
        that ask at once, one logs in."""
        if self._is_valid(token, until):
            return None
        if not self._logging_in.acquire(timeout=max(0.0, until - time.monotonic())):
            raise KeyStoreUnreachable(f"{self._service.service}: logging in again takes too long")
        try:
            if self._token is token:
                if self._refused and time.monotonic() < self._renew_at:
                    raise KeyStoreError(self._trouble)
                self._log_in(until)
            return self._token
        finally:
            self._logging_in.release()

    def _is_valid(self, token: Token, until: float) -> bool:
        answer = self._send("GET", "auth/token/lookup-self", until, token, self._login.namespace)
        if answer.status not in (200, 403):
            raise self._service.unexpected(answer, self.said(answer))
        if answer.status == 403 and not token.may_ask:
            return time.monotonic() < token.since + UNSURE_SECONDS
        return answer.status == 200

    # --- the background ---

    def _keep(self) -> None:
        while self._wait_until_due():
            with suppress(Exception):  # whoever needs what is missing is told why
                if time.monotonic() >= self._ping_at:
                    self._look_again()
            with suppress(Exception):
                if time.monotonic() >= self._renew_at and not self._sealed:
                    self._renew()
        with suppress(KeyStoreError):
            until = time.monotonic() + CLOSE_SECONDS
            if self._login.method and not self._sealed:
                self._send("PUT", "auth/token/revoke-self", until, self._token, self._login.namespace, retries=0)

    def _wait_until_due(self) -> bool:
        """False when it is closed."""
        with self._changed:
            while not self._closed:
                due = self._ping_at if self._sealed else min(self._ping_at, self._renew_at)
                if time.monotonic() >= due:
                    return True
                self._changed.wait(min(due - time.monotonic(), _LONGEST_WAIT))
            return False

    def _look_again(self) -> None:
        try:
            self._ask_health(self._service.deadline())
        finally:
            seconds = min(self._ping, RETRY_SECONDS) if self._sealed else self._ping
            self._ping_at = time.monotonic() + seconds

    def _renew(self) -> None:
        until = self._service.deadline()
        with self._logging_in:
            token = self._token
            if time.monotonic() < self._renew_at:  # a call did it
                return
            if token.renewable and not token.expired:
                renewed = self._renewed(token, until)
                if renewed is not None and renewed.seconds >= token.granted / 2:
                    self._use(renewed)
                    return
            self._log_in(until)

    def _renewed(self, token: Token, until: float) -> Token | None:
        """None when that is refused."""
        since = time.monotonic()
        try:
            answer = self._send("PUT", "auth/token/renew-self", until, token, self._login.namespace, body={})
        except KeyStoreError as error:
            self._failed(error)
            raise
        return _token(answer, since, token) if answer.status == 200 else None

    def _log_in(self, until: float) -> None:
        try:
            token = self._new_token(until)
        except KeyStoreError as error:
            self._failed(error)
            raise
        self._use(token)

    def _new_token(self, until: float) -> Token:
        since = time.monotonic()
        namespace, body = self._login.namespace, self._login.credentials()
        if not self._login.method:
            return Token(body["token"], renewable=False, seconds=0.0, granted=0.0, since=since, may_ask=False)
        answer = self._send("PUT", f"{self._login.method}/login", until, None, namespace, body=body)
        where = f"'{self._login.method}'" + (f" in the namespace '{namespace}'" if namespace else "")
        if answer.status in (400, 403, 404):
            raise _Refused(
                f"{self._service.service} at {self._service.endpoint} refuses the login at {where} "
                f"({self.said(answer) or answer.reason}): {self._login.advice}",
                self._login.wrong_seconds if answer.status == 400 else RETRY_SECONDS,
            )
        token = _token(answer, since) if answer.status == 200 else None
        if token is None:
            raise self._service.unexpected(answer, self.said(answer) or f"no token at {where}")
        return token

    def _use(self, token: Token) -> None:
        with self._changed:
            self._token = token
            self._renew_at = token.renew_at
            self._trouble, self._refused, self._failures = "", False, 0
            self._changed.notify_all()

    def _failed(self, error: KeyStoreError) -> None:
        with self._changed:
            self._trouble, self._refused = str(error), isinstance(error, _Refused)
            seconds = error.pause if isinstance(error, _Refused) else _FIRST_RETRY * 2**self._failures
            self._failures = min(self._failures + 1, _DOUBLINGS)
            self._renew_at = time.monotonic() + seconds
            self._changed.notify_all()

    def _send(
        self,
        method: str,
        path: str,
        until: float,
        token: Token | None = None,
        namespace: str = "",
        *,
        body: Any = None,
        retries: int = http.RETRIES,
    ) -> Answer:
        headers = {"X-Vault-Request": "true"}
        if namespace:
            headers["X-Vault-Namespace"] = namespace
        if token is not None:
            headers["X-Vault-Token"] = token.text
        if token is not None and self._index:
            headers |= {"X-Vault-Index": self._index, "X-Vault-Inconsistent": "forward-active-node"}
        answer = self._service.call(
            method,
            f"/v1/{path}",
            body=body,
            headers=headers,
            retries=retries,
            seconds=until - time.monotonic(),
        )
        if answer.status == 307:
            raise KeyStoreUnreachable(
                f"{self._service.service} at {self._service.endpoint} is a standby that does not reach the active "
                "server: let it, or set 'endpoint' to an address that leads to the active one"
            )
        seen = answer.headers.get("X-Vault-Index")
        if answer.status in (412, 429) or "X-Vault-Index" in self.said(answer):
            self._index = ""  # it is of no use there
        elif seen and is_token(seen):
            with self._changed:
                self._index = _newer(self._index, seen)
        return answer


def _namespace(service: str, text: str, setting: str) -> str:
    text = text.strip("/")
    if not (text.isascii() and text.isprintable()):
        raise KeyStoreError(f"{service}: '{setting}' can have only printable characters of ASCII")
    return text


def _login(service: str, settings: Mapping[str, str], section: str, namespace: str) -> Login:
    """With a token of a file, an AppRole, or a service account of Kubernetes. `namespace`: unless there is one of its
    own."""
    if "token.file" in settings:
        file = settings["token.file"]
        return Login("", lambda: {"token": _read_token(service, file, f"{section}token.file")}, namespace, "", 0.0)
    method = "approle" if "approle.id" in settings else "kubernetes"
    name = f"{section}{method}"
    if (other := settings.get(f"{method}.namespace")) is not None:
        namespace = _namespace(service, other, f"{name}.namespace")
    path = f"auth/{parts(settings[f'{method}.engine'])}"
    if method == "approle":
        role = {"role_id": settings["approle.id"], "secret_id": settings["approle.secret"]}
        advice = (
            f"look at '{name}.id' and '{name}.secret', which may have expired, and at '{name}.engine' and "
            f"'{name}.namespace'; after several wrong logins a role may be locked for some minutes"
        )
        return Login(path, lambda: role, namespace, advice, WRONG_SECRET_SECONDS)
    account, jwt = settings["kubernetes.role"], settings["kubernetes.jwt"]
    advice = (
        f"look at '{name}.role', '{name}.jwt', '{name}.engine' and '{name}.namespace', and whether the server reaches "
        "Kubernetes"
    )
    return Login(
        path, lambda: {"role": account, "jwt": _jwt(service, jwt, f"{name}.jwt")}, namespace, advice, RETRY_SECONDS
    )


def _jwt(service: str, jwt: str, setting: str) -> str:
    """The token, read anew if it is in a file: Kubernetes replaces it before it expires."""
    if "/" in jwt:
        return _read_token(service, jwt, setting)
    if jwt.count(".") != 2:
        raise KeyStoreError(f"{service}: '{setting}' is no token. The name of a file needs a '/', such as './token'")
    return jwt


def _read_token(service: str, file: str, setting: str) -> str:
    try:
        token = Path(file).read_text("ascii").strip()
    except OSError as error:
        raise KeyStoreError(f"{service}: {setting} '{file}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        token = ""
    if not is_token(token):
        raise KeyStoreError(f"{service}: {setting} '{file}' holds no token")
    return token


def _newer(old: str, new: str) -> str:
    """Of two states. Answers to calls at the same time come in any order; where states cannot be compared, the last one
    that came is taken."""
    with suppress(ValueError, TypeError, KeyError):
        before, after = (json.loads(base64.b64decode(index, validate=True)) for index in (old, new))
        if before["cluster"] == after["cluster"] and int(before["value"]) > int(after["value"]):
            return old
    return new


def _token(answer: Answer, since: float, old: Token | None = None) -> Token | None:
    """The token in an answer, which is the old one when it was renewed."""
    match answer.json():
        case {
            "auth": {
                "client_token": str(text),
                "lease_duration": int(seconds) | float(seconds),
                "renewable": bool(renewable),
                **more,
            }
        } if is_token(text) and seconds >= 0:
            policies = more.get("policies")
            may_ask = isinstance(policies, list) and "default" in policies
            return Token(text, renewable, seconds, old.granted if old else seconds, since, may_ask)
    return None
