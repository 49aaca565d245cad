"""Signing in to Azure Key Vault: the vault says whose tokens it takes, and azure-identity gets them.

A vault answers a call without a token with a challenge that names the audience of its tokens. A token is only asked for
if the vault belongs to that audience, so that no endpoint can have tokens that are good for others.

Tokens are got on a thread of their own, one at a time, for which a call waits no longer than it has time. A token that
comes to its end is renewed while it is still good, so that calls do not wait at all.
"""

import logging
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from keswick.keystore.contract import KeyStoreError, KeyStoreUnreachable

if TYPE_CHECKING:
    from keswick.keystore.http import Answer, HttpService

CHALLENGED = "/secrets?maxresults=1&api-version=7.5"
"""What is called without a token, to be challenged."""
TRIES = 3
REQUEST_SECONDS = 5.0
"""For one request to the service that gives tokens."""
RENEW_SECONDS = 290.0
"""Before the end of a token. A little less than 5 minutes, until when azure-identity gives the same one again."""
PAUSE_SECONDS = 30.0
"""Between tries to renew a token that is still good, and before one that the vault refuses is taken for old."""
REFUSED_SECONDS = 5.0
"""For as long nobody signs in again who was refused."""

_FIELD = re.compile(r'(\w+)\s*=\s*"?([^",\s]+)"?')
_AWAY = frozenset({410, 429, 500, 502, 503, 504})
"""Answers after which it is worth asking for a token again."""
_CAUSES = {
    "AADSTS7000215:": "'credentials.client_secret' is wrong: take the value of the secret, not its ID",
    "AADSTS7000222:": "'credentials.client_secret' has expired: make a new secret for the application",
    "AADSTS700016:": "'credentials.client_id' is no application of the tenant 'credentials.tenant_id'",
    "AADSTS90002:": "'credentials.tenant_id' is no tenant that is known",
    "Unable to get authority configuration": "'credentials.tenant_id', or 'authority' if it is set, is wrong",
}
"""What frequent refusals mean here."""


@dataclass(frozen=True, slots=True)
class _Token:
    text: str = field(repr=False)
    taken: float
    """This and the next two are moments of `time.monotonic`."""
    renewed: float
    """When it is to be renewed."""
    ends: float


class Login:
    """Signs calls to the vault `http` in; `settings` say who calls. Raises KeyStoreError when they cannot be used."""

    def __init__(self, http: "HttpService", settings: Mapping[str, str]) -> None:
        self._http = http
        self._secret = settings.get("credentials.client_secret", "")
        self._transport = _transport(http)
        self._new_credential = _credentials(self._transport, settings)
        self._advice = _advice(settings)
        try:
            self._credential = self._new_credential()
        except ValueError as error:
            raise KeyStoreError(f"{http.service}: {self._advice}: {error}") from error
        self._lock = threading.Lock()
        """For what follows."""
        self._token: _Token | None = None
        self._pending: Future[_Token] | None = None
        """The sign-in that is under way, or that was refused a moment ago."""
        self._next_try = 0.0
        """When a refused one is over."""
        self._next_renewal = 0.0
        self.tenant = ""
        """Of the vault, once it has said so."""

    def call(self, send: "Callable[[str], Answer]", until: float) -> "Answer":
        """The answer to `send(authorization)`, or to a second one if the first is refused with 401 and its token was
        not a new one. `until`: a moment of `time.monotonic`. Raises KeyStoreError when there is no token."""
        token = self.token(until)
        first = send(f"Bearer {token}")
        if first.status != 401 or not self._forget(token):
            return first
        second = send(f"Bearer {self.token(until)}")
        return replace(second, retried=first.retried or second.retried)

    def token(self, until: float) -> str:
        with self._lock:
            now = time.monotonic()
            if self._pending is not None and self._pending.done() and now >= self._next_try:
                self._pending = None
            token = self._token
            good = token is not None and now < token.ends
            due = token is None or (now >= token.renewed and (not good or now >= self._next_renewal))
            if due and self._pending is None:
                self._next_renewal = now + PAUSE_SECONDS
                self._pending = Future()
                threading.Thread(
                    target=self._sign_in, args=(self._pending,), name="sign in to Azure", daemon=True
                ).start()
            if token is not None and good:
                return token.text
            pending = self._pending
        assert pending is not None, "there is a token, or somebody is getting one"
        try:
            return pending.result(max(0.0, until - time.monotonic())).text
        except TimeoutError:
            raise KeyStoreUnreachable(
                f"{self._http.service}: signing in takes too long; {self._advice}, and at the network"
            ) from None
        except KeyStoreError as error:
            raise type(error)(str(error)) from error.__cause__  # each caller has an error of its own

    def close(self) -> None:
        """A thread that is signing in ends within seconds, and keeps no process from ending."""
        self._transport.session.close()

    def _forget(self, refused: str) -> bool:
        """Whether there is, or can be, another token than the one that the vault refused."""
        with self._lock:
            token = self._token
            if token is None or token.text != refused:
                return True
            if time.monotonic() < token.taken + PAUSE_SECONDS:
                return False
            self._token = None
            self._credential = self._new_credential()  # which does not remember the old token
            return True

    def _sign_in(self, result: "Future[_Token]") -> None:
        token: _Token | None = None
        try:
            token = self._obtain(self._http.deadline())
        except Exception as error:
            failure = self._failure(error)
        with self._lock:
            if token is not None:
                self._token, self._pending = token, None
            elif isinstance(failure, KeyStoreUnreachable):
                self._pending = None
            else:
                self._next_try = time.monotonic() + REFUSED_SECONDS
        if token is not None:
            result.set_result(token)
        else:
            result.set_exception(failure)

    def _obtain(self, until: float) -> _Token:
        scope = f"{self._audience(until)}/.default"
        for left in range(TRIES - 1, -1, -1):
            try:
                given = self._credential.get_token(scope)
                break
            except Exception as error:  # whatever the libraries raise
                failure = self._failure(error)
                if not isinstance(failure, KeyStoreUnreachable) or not left or not self._http.wait(until):
                    raise failure from error
        now = time.monotonic()
        life = given.expires_on - time.time()
        return _Token(given.token, now, now + life - min(RENEW_SECONDS, life / 2), now + life)

    def _audience(self, until: float) -> str:
        answer = self._http.call("GET", CHALLENGED, seconds=until - time.monotonic())
        if answer.status != 401:
            raise self._http.unexpected(answer, "it should ask for a token; is the endpoint that of a vault?")
        challenge = dict(_FIELD.findall(answer.headers.get("WWW-Authenticate", "")))
        audience = challenge.get("resource") or challenge.get("scope", "").removesuffix("/.default")
        vault, owner = urlsplit(self._http.endpoint).hostname or "", urlsplit(audience).hostname or ""
        if not owner or (vault != owner and not vault.endswith(f".{owner}")):
            raise KeyStoreError(
                f"{self._http.service} at {self._http.endpoint} asks for a token for '{audience}', which it is no part "
                "of: is the endpoint that of a vault?"
            )
        authority = urlsplit(challenge.get("authorization") or challenge.get("authorization_uri", ""))
        self.tenant = authority.path.strip("/").partition("/")[0]
        return str(audience).rstrip("/")

    def _failure(self, error: Exception) -> KeyStoreError:
        if isinstance(error, KeyStoreError):
            return error
        from azure.core.exceptions import ServiceRequestError, ServiceResponseError

        from keswick.keystore.http import printable

        words = str(error).removeprefix("Authentication failed: ")
        if self._secret:
            words = words.replace(self._secret, "...")
            for refusal, cause in _CAUSES.items():
                if refusal in words:
                    return KeyStoreError(f"{self._http.service}: {cause} ({printable(words.partition('. ')[0])})")
        away = any(isinstance(reason, ServiceRequestError | ServiceResponseError) for reason in _reasons(error))
        kind, advice = KeyStoreError, f"; {self._advice}"
        if away:
            kind, advice = KeyStoreUnreachable, "" if self._secret else advice
        return kind(f"{self._http.service}: signing in failed{advice}: {printable(words)}")


def _credentials(transport: Any, settings: Mapping[str, str]) -> Callable[[], Any]:
    """What makes a credential of azure-identity."""
    from azure.identity import ClientSecretCredential, DefaultAzureCredential, ManagedIdentityCredential

    for library in ("azure", "msal"):
        logger = logging.getLogger(library)
        if not logger.handlers:  # it would print warnings to the error log, whatever that looks like
            logger.addHandler(logging.NullHandler())
    options: dict[str, Any] = {"transport": transport, "retry_total": 0}
    authority: dict[str, Any] = {}
    if "authority" in settings:
        # It is the operator's word; the library would ask Microsoft's public cloud whether it is one of theirs.
        authority = {"authority": settings["authority"], "disable_instance_discovery": True}
    if "credentials.client_id" in settings:
        who = tuple(settings[f"credentials.{key}"] for key in ("tenant_id", "client_id", "client_secret"))
        return lambda: ClientSecretCredential(*who, **authority, **options)
    if "managed_identity.client_id" in settings:
        return lambda: ManagedIdentityCredential(client_id=settings["managed_identity.client_id"], **options)
    return lambda: DefaultAzureCredential(
        exclude_shared_token_cache_credential=True,
        exclude_visual_studio_code_credential=True,
        exclude_powershell_credential=True,
        **authority,
        **options,
    )


def _transport(http: "HttpService") -> Any:
    """How azure-identity calls: with the trust of the key store, as it is when a connection is made, in time, and with
    errors in plain words."""
    import requests
    from azure.core.exceptions import ServiceRequestError, ServiceResponseError
    from azure.core.pipeline.transport import RequestsTransport
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        """Whom to trust stands in the context. What the library finds in the environment would be added to that."""

        def build_connection_pool_key_attributes(self, *arguments: Any, **options: Any) -> Any:
            host, _ = super().build_connection_pool_key_attributes(*arguments, **options)
            return host, {"ssl_context": http.tls}

        def cert_verify(self, *_: Any) -> None:
            pass

    class Transport(RequestsTransport):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            host = urlsplit(request.url).netloc
            try:
                response = super().send(request, **options)
            except (ServiceRequestError, ServiceResponseError) as error:
                raise type(error)(f"{host} {_why(error)}") from error
            if response.status_code in _AWAY:
                raise ServiceResponseError(f"{host} answered {response.status_code}")
            return response

    session = requests.Session()
    session.mount("https://", Adapter())
    return Transport(
        session=session, session_owner=False, connection_timeout=REQUEST_SECONDS, read_timeout=REQUEST_SECONDS
    )


def _why(error: Exception) -> str:
    """What kept a request from being answered."""
    for reason in _reasons(error):
        match reason:
            case ssl.SSLCertVerificationError():
                words = f"a certificate that is not trusted ({reason.verify_message})"
                return f"has {words}: set 'tls.ca' to the authority that issued it"
            case socket.gaierror():
                return "is not known; look at DNS"
            case TimeoutError():
                return "did not answer in time"
            case OSError(errno=int(number)):
                return f"cannot be reached ({os.strerror(number)})"
    return "cannot be reached"


def _advice(settings: Mapping[str, str]) -> str:
    if "credentials.client_id" in settings:
        return "look at 'credentials'"
    if "managed_identity.client_id" in settings:
        return "look at 'managed_identity.client_id', and whether this machine has that identity"
    return (
        "there are neither 'credentials' nor 'managed_identity', so look at the AZURE_ variables of the environment "
        "and at the identity of this machine"
    )


def _reasons(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__ or getattr(error, "inner_exception", None)
