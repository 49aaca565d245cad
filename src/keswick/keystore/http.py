"""Calls of key stores over HTTP: connections are kept and used again, every call ends in time, and what keeps one from
being answered is said in words for an operator.

A call is tried again when that may help: after a lost connection, a time-out, and the statuses of a service in trouble.
A connection that is refused, a name that is not known and a certificate that is not trusted are told at once.
"""

import json
import os
import random
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import responses
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
    SSLError,
)

import keswick
from keswick import roots
from keswick.keystore.contract import KeyStoreError, KeyStoreUnreachable

MOST_CONNECTIONS = 32
"""To one service: as many as the server has threads for its key store."""
CONNECT_SECONDS = 5.0
CALL_SECONDS = 12.0
"""For one call with all its tries: less than the 15 seconds that the server's clients wait."""
MAX_REPLY = 32 << 20
"""Bytes of an answer."""
RETRIES = 2
_TROUBLED = frozenset({500, 502, 503, 504})


def pause_seconds() -> float:
    """Before another try: spread, so that many that failed together do not come together again."""
    return 0.2 + 0.8 * random.random()  # noqa: S311 - no secret


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names are matched in any case."""
    body: bytes = field(repr=False)
    retried: bool
    """Whether an earlier try may have been carried out, though its answer did not arrive."""

    def json(self) -> Any:
        """The body, or None where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def reason(self) -> str:
        """The status in words, such as `403 Forbidden`."""
        return f"{self.status} {responses.get(self.status, '')}".rstrip()


class HttpService:
    """One service at `endpoint`, a URL whose path, if any, begins every path that is called. Spaces around it and
    slashes at its end do not matter.

    `service` is what errors call it, such as `the key store 'vault'`. `ca`: PEM file or folder of whom to trust,
    besides the roots of the system or, if `only_ca`, alone; `ca_setting`: what an operator sets it with; `certificate`:
    PEM files of the client's certificate and key. `should_retry`: whether an answer is worth another try. Proxies are
    those of the environment.

    Raises KeyStoreError when the endpoint is no URL or a file cannot be used.
    """

    def __init__(
        self,
        service: str,
        endpoint: str,
        *,
        ca: str | None = None,
        only_ca: bool = False,
        ca_setting: str = "tls.ca",
        certificate: tuple[str, str] | None = None,
        minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        should_retry: Callable[[int], bool] = _TROUBLED.__contains__,
    ) -> None:
        self.service = service
        self.endpoint = endpoint = endpoint.strip().rstrip("/")
        url = _service_url(endpoint)
        if url is None:
            raise KeyStoreError(f"{service}: the endpoint '{endpoint}' is no URL: write it as https://HOST:PORT")
        self._base = url.path.rstrip("/")
        self._should_retry = should_retry
        self._ca_setting = ca_setting
        options: dict[str, Any] = {"maxsize": MOST_CONNECTIONS, "block": True}
        self.tls: ssl.SSLContext | None = None
        """Whom it trusts and what it shows, for other connections of the same store."""
        if url.scheme == "https":
            options["ssl_context"] = self.tls = self._context(ca, only_ca, certificate, minimum_version)
        proxy = getproxies().get(url.scheme)
        pools: urllib3.PoolManager = (
            urllib3.ProxyManager(proxy, **options)
            if proxy and not proxy_bypass(url.hostname or "")
            else urllib3.PoolManager(**options)
        )
        self._pools = pools
        self._pool = pools.connection_from_url(f"{url.scheme}://{url.netloc}")

    def deadline(self) -> float:
        """When something that begins now has to be over, by `time.monotonic`, however many calls it takes."""
        return time.monotonic() + CALL_SECONDS

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        retries: int = RETRIES,
        seconds: float | None = None,
        max_reply: int = MAX_REPLY,
    ) -> Answer:
        """One call. `path`: percent-encoded, perhaps with a query; `body`: bytes, or a value that is sent as JSON;
        `seconds`: for all tries together, else CALL_SECONDS.

        Raises KeyStoreUnreachable when no answer came, whatever was tried; any status is an answer.
        """
        sent = {"User-Agent": f"keswick/{keswick.__version__}", **(headers or {})}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        deadline = time.monotonic() + (CALL_SECONDS if seconds is None else seconds)
        unanswered = False
        for left in range(retries, -1, -1):
            try:
                answer = self._try(method, self._base + path, body, sent, deadline, max_reply)
            except _Lost as lost:
                unanswered = True
                if not left or not self.wait(deadline):
                    raise KeyStoreUnreachable(str(lost)) from lost.__cause__
                continue
            if not self._should_retry(answer.status) or not left or not self.wait(deadline):
                return Answer(answer.status, answer.headers, answer.data, unanswered)
            unanswered = True  # what a service in trouble has done nobody knows
        raise AssertionError("the last try returns or raises")

    def json(self, method: str, path: str, expected: int, **options: Any) -> dict[str, Any]:
        """The object that a call answers with. Raises KeyStoreError for any other status, or what is no object."""
        answer = self.call(method, path, **options)
        if answer.status != expected:
            raise self.unexpected(answer)
        return self.object(answer)

    def object(self, answer: Answer) -> dict[str, Any]:
        found = answer.json()
        if not isinstance(found, dict):
            raise KeyStoreError(
                f"{self.service} answered with what is no JSON object: is '{self.endpoint}' the right one?"
            )
        return found

    def unexpected(self, answer: Answer, words: str = "") -> KeyStoreError:
        """The error for an answer that a store cannot use; `words`: what the service says of it."""
        kind = KeyStoreUnreachable if answer.status in (502, 503, 504) else KeyStoreError
        return kind(f"{self.service} at {self.endpoint} answered {answer.reason}{words and f': {printable(words)}'}")

    def close(self) -> None:
        self._pools.clear()

    def wait(self, deadline: float) -> bool:
        """Whether there is time for another try, after a pause."""
        pause = pause_seconds()
        if time.monotonic() + pause >= deadline:
            return False
        time.sleep(pause)
        return True

    def _try(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        deadline: float,
        max_reply: int,
    ) -> "_Whole":
        with self._failures():
            left = max(0.001, deadline - time.monotonic())
            response = self._pool.urlopen(
                method,
                path,
                body=body,
                headers=headers,
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, left), read=left),
                pool_timeout=left,  # type: ignore[arg-type] # it may be a fraction
                preload_content=False,
                assert_same_host=False,
            )
            try:
                data = b""
                # Piece by piece, so that an answer that trickles in does not outlive the call.
                while piece := response.read1(1 << 16) if hasattr(response, "read1") else response.read(1 << 16):
                    data += piece
                    if len(data) > max_reply:
                        response.close()
                        raise KeyStoreError(f"{self.service} answered with more than {max_reply} bytes")
                    if time.monotonic() > deadline:
                        response.close()
                        raise _Lost(f"{self.service} at {self.endpoint} did not answer in time")
            finally:
                response.release_conn()
            return _Whole(response.status, response.headers, data)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        where = f"{self.service} at {self.endpoint}"
        try:
            yield
        except SSLError as error:
            raise KeyStoreUnreachable(f"{where}: {_tls_words(error, self._ca_setting)}") from error
        except NameResolutionError as error:
            raise KeyStoreUnreachable(
                f"{where}: its host name is not known; look at the endpoint and at DNS"
            ) from error
        except ProxyError as error:
            raise KeyStoreUnreachable(f"{where}: the proxy of the environment does not let it through") from error
        except NewConnectionError as error:
            cause = error.__cause__
            words = os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "no connection"
            raise KeyStoreUnreachable(
                f"{where} cannot be reached ({words}): is it running, and the endpoint right?"
            ) from error
        except ConnectTimeoutError as error:
            raise KeyStoreUnreachable(f"{where} cannot be reached in time: a firewall, or a wrong endpoint?") from error
        except ReadTimeoutError as error:
            raise _Lost(f"{where} did not answer in time") from error
        except ProtocolError as error:
            raise _Lost(f"{where} ended the connection without an answer") from error
        except HTTPError as error:
            raise _Lost(f"{where}: {type(error).__name__}") from error

    def _context(
        self, ca: str | None, only_ca: bool, certificate: tuple[str, str] | None, minimum_version: ssl.TLSVersion
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = minimum_version
        trusted = [] if ca and only_ca else list(roots.system())
        if ca:
            try:
                added = list(roots.certificates(Path(ca)))
            except (OSError, ValueError) as error:
                words = error.strerror if isinstance(error, OSError) else error
                raise KeyStoreError(f"{self.service}: {self._ca_setting} '{ca}' cannot be used: {words}") from error
            if not added:
                raise KeyStoreError(f"{self.service}: {self._ca_setting} '{ca}' holds no certificate in PEM form")
            trusted += added
        for der in dict.fromkeys(trusted):
            try:
                context.load_verify_locations(cadata=der)
            except ssl.SSLError:  # one that this library does not know, among those of the system
                continue
        if certificate is not None:
            cert, key = certificate
            try:
                context.load_cert_chain(cert, key, _no_password)
            except (OSError, ValueError) as error:
                raise KeyStoreError(
                    f"{self.service}: tls.cert '{cert}' and tls.key '{key}' cannot be used: "
                    f"{error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else error}"
                ) from error
        return context


class _Lost(Exception):
    """No answer came, and nobody knows whether the call was carried out."""


@dataclass(frozen=True, slots=True)
class _Whole:
    status: int
    headers: Mapping[str, str]
    data: bytes = field(repr=False)


def _service_url(text: str) -> SplitResult | None:
    """None where it does not name a service."""
    try:
        url = urlsplit(text)
        named = url.scheme in ("https", "http") and url.hostname and url.port != 0
    except ValueError:  # a port that is no number, half an address
        return None
    return url if named and text.split() == [text] else None


def _no_password() -> str:
    raise ValueError("the private key is encrypted, which is not supported here")


def _tls_words(error: SSLError, ca_setting: str) -> str:
    cause = error.args[0] if error.args else error
    while isinstance(cause, Exception) and not isinstance(cause, ssl.SSLError) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        issuer = f"set '{ca_setting}' to the authority that issued it"
        return f"its certificate is not trusted ({cause.verify_message}): {issuer}"
    reason = getattr(cause, "reason", None) or str(cause)
    return f"the TLS handshake failed ({reason})"


def printable(text: str) -> str:
    """What a service says, in one line that is not too long."""
    text = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in text[:300])
