"""Calls of key stores over HTTP: connections are kept and used again, every call ends in time, and what keeps one from
being answered is said in words for an operator.

A call is tried again when that may help: after a lost connection, a time-out, and the statuses of a service in trouble.
A connection that is refused, a name that is not known and a certificate that is not trusted are told at once.
"""

import json
import os
import random
import re
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException, HTTPResponse, IncompleteRead, responses
from io import BufferedReader, RawIOBase
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import (
    ClosedPoolError,
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
from keswick.keystore.tls import load_pair, versions

MOST_CONNECTIONS = 32
"""To one service: as many as the server has threads for its key store."""
CONNECT_SECONDS = 5.0
"""For all addresses of a host."""
CALL_SECONDS = 12.0
"""For one call with all its tries: less than the 15 seconds that the server's clients wait."""
RENEWAL_SECONDS = 10.0
"""After which the certificates of a section `tls` are looked at anew, when a call is made."""
MAX_REPLY = 32 << 20
"""Bytes of an answer."""
RETRIES = 2
_TROUBLED = frozenset({500, 502, 503, 504})
_SOCKET_OPTIONS = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (
        ("TCP_KEEPIDLE", 20),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 6000),
    )
    if hasattr(socket, name)
]
"""With which firewalls do not forget a connection that is kept, and a peer that is gone without a word is noticed."""


def pause_seconds() -> float:
    """Before another try: spread, so that many that failed together do not come together again."""
    return 0.2 + 0.8 * random.random()  # noqa: S311 - no secret


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str] = field(repr=False)
    """Names are matched in any case."""
    body: bytes = field(repr=False)
    retried: bool = False
    """Whether an earlier try may have been carried out, though its answer did not arrive."""

    def json(self) -> Any:
        """The body, or None where it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
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
    PEM files of the client's certificate and key, which, like the authorities, are read anew when they have changed.
    `should_retry`: whether an answer is worth another try. Proxies are those of the environment.

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
            shown = "" if "@" in endpoint else f" '{endpoint}'"  # before an @ there may be a password
            raise KeyStoreError(f"{service}: the endpoint{shown} is no URL: write it as https://HOST:PORT")
        self._should_retry = should_retry
        self._ca_setting = ca_setting
        self._files = [path for path in (ca, *(certificate or ())) if path]
        self._versions = versions(self._files)  # first, so that no change is missed while they are read
        self._url = url
        self._proxy = proxy = _proxy(url)
        self.tls: ssl.SSLContext | None = None
        """Whom it trusts and what it shows, for other connections of the same store."""
        self._new_context: Callable[[], ssl.SSLContext] | None = None
        if url.scheme == "https":
            self._new_context = lambda: self._context(ca, only_ca, certificate, minimum_version)
            self.tls = self._new_context()
        self._renewal = threading.Lock()
        self._next_renewal = time.monotonic() + RENEWAL_SECONDS
        self._not_renewed = ""
        self._closed = False
        self._base, self._where = url.path, f"{service} at {endpoint}"
        if proxy:
            self._where += f" (through the proxy {proxy.partition('://')[2].partition('/')[0].rpartition('@')[2]})"
            if url.scheme == "http":
                self._base = endpoint  # such a proxy is told the whole URL
        self._free = threading.Semaphore(MOST_CONNECTIONS)
        self._pool = self._connections()

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
            if answer.status == 400 and self.tls is None and _WANTS_TLS.search(answer.body):
                raise KeyStoreError(f"{self.service} at {self.endpoint} speaks TLS: write the endpoint with https://")
            if not self._should_retry(answer.status) or not left or not self.wait(deadline):
                return replace(answer, retried=unanswered)
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
        return kind(f"{self._where} answered {answer.reason}{words and f': {printable(words)}'}")

    def close(self) -> None:
        """Connections in use are closed when their calls are over."""
        with self._renewal:
            self._closed = True
            self._pool.close()

    def wait(self, deadline: float) -> bool:
        """Whether there is time for another try, after a pause."""
        pause = pause_seconds()
        if time.monotonic() + pause >= deadline:
            return False
        time.sleep(pause)
        return True

    def _connections(self) -> HTTPConnectionPool:
        try:
            pools = _pools(self._proxy, {"maxsize": MOST_CONNECTIONS} | ({"ssl_context": self.tls} if self.tls else {}))
        except HTTPError as error:
            raise KeyStoreError(
                f"{self.service}: {self._url.scheme.upper()}_PROXY of the environment names no proxy that can be used: "
                "write it as http://HOST:PORT"
            ) from error
        return pools.connection_from_url(f"{self._url.scheme}://{self._url.netloc}")

    def _renew(self) -> None:
        """Use the certificates as they are on disk now. What cannot be used, such as half of a renewal, leaves those
        that were read before in force."""
        if not self._files or self._new_context is None or time.monotonic() < self._next_renewal:
            return
        if not self._renewal.acquire(blocking=False):
            return  # another thread is at it
        try:
            self._next_renewal = time.monotonic() + RENEWAL_SECONDS
            found = versions(self._files)
            if self._closed:
                return
            if found == self._versions:
                self._not_renewed = ""
                return
            try:
                self.tls = self._new_context()
            except (KeyStoreError, OSError) as error:
                self._not_renewed = f"; it has changed on disk, but {error}"
                return
            # The old pool closes its connections when the last call that uses one is over.
            self._pool = self._connections()
            self._versions, self._not_renewed = found, ""
        finally:
            self._renewal.release()

    def _try(
        self,
        method: str,
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        deadline: float,
        max_reply: int,
    ) -> Answer:
        if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise KeyStoreUnreachable(f"all {MOST_CONNECTIONS} connections to {self.service} are in use")
        try:
            self._renew()
            with self._failures():
                left = max(0.001, deadline - time.monotonic())
                response = self._pool.urlopen(
                    method,
                    url,
                    body=body,
                    headers=headers,
                    retries=False,
                    redirect=False,
                    timeout=urllib3.Timeout(total=left, connect=min(CONNECT_SECONDS, left)),
                    preload_content=False,
                    assert_same_host=False,
                )
                try:
                    data = response.read(max_reply + 1)
                    if len(data) > max_reply:
                        response.close()
                        raise KeyStoreError(f"{self.service} answered with more than {max_reply} bytes")
                finally:
                    response.release_conn()
                return Answer(response.status, response.headers, data)
        finally:
            self._free.release()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        where = self._where
        try:
            yield
        except SSLError as error:
            cause = error.args[0] if error.args else error
            if isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                raise _Lost(f"{where} ended the connection without an answer") from error
            words = _tls_words(cause, self._ca_setting) + self._not_renewed
            raise KeyStoreUnreachable(f"{where}: {words}") from error
        except NameResolutionError as error:
            raise KeyStoreUnreachable(
                f"{where}: its host name is not known; look at the endpoint and at DNS"
            ) from error
        except ProxyError as error:
            raise KeyStoreUnreachable(f"{where}: the proxy does not let it through: {_proxy_words(error)}") from error
        except NewConnectionError as error:
            raise KeyStoreUnreachable(
                f"{where} cannot be reached ({_system_words(error)}): is it running, and the endpoint right?"
            ) from error
        except ConnectTimeoutError as error:
            raise KeyStoreUnreachable(f"{where} cannot be reached in time: a firewall, or a wrong endpoint?") from error
        except ReadTimeoutError as error:
            raise _Lost(f"{where} did not answer in time") from error
        except ProtocolError as error:
            cause = error.args[-1]
            if isinstance(cause, HTTPException) and not isinstance(cause, ConnectionError | IncompleteRead):
                raise _Lost(f"{where} answered with what is no HTTP: is the endpoint right?") from error
            raise _Lost(f"{where} ended the connection without an answer") from error
        except ClosedPoolError as error:
            raise KeyStoreError(f"{self.service} is closed") from error
        except HTTPError as error:
            raise _Lost(f"{where}: {type(error).__name__}") from error

    def _context(
        self, ca: str | None, only_ca: bool, certificate: tuple[str, str] | None, minimum_version: ssl.TLSVersion
    ) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = minimum_version
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whom to trust need not be at the end of a chain
        added: list[bytes] = []
        if ca:
            try:
                added = list(roots.certificates(Path(ca)))
            except (OSError, ValueError) as error:
                words = error.strerror if isinstance(error, OSError) else error
                raise KeyStoreError(f"{self.service}: {self._ca_setting} '{ca}' cannot be used: {words}") from error
        usable = set()
        for der in dict.fromkeys([*added, *([] if ca and only_ca else roots.system())]):
            with suppress(ssl.SSLError):  # one that this library does not know
                context.load_verify_locations(cadata=der)
                usable.add(der)
        if ca and usable.isdisjoint(added):
            raise KeyStoreError(f"{self.service}: {self._ca_setting} '{ca}' holds no certificate in PEM form")
        if certificate is not None:
            load_pair(context, self.service, *certificate)
        return context


class _Lost(Exception):
    """No answer came, and nobody knows whether the call was carried out."""


class _Until(RawIOBase):
    """What `raw` reads from a socket, for as long as the time limit of the socket is now, and no longer, however little
    comes at a time."""

    ended = False
    """Whether the peer has closed it."""

    def __init__(self, raw: RawIOBase, connection: socket.socket) -> None:
        self._raw = raw
        self._connection = connection
        self._end = time.monotonic() + (connection.gettimeout() or 0.0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._connection.settimeout(left)
        count = self._raw.readinto(buffer)
        self.ended = count == 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    """Its time limit is for all of it: the library's is from one piece to the next. Half of the headers are none. What
    comes before an answer, such as 103, is passed over: the library takes it for the answer, and what follows for that
    to the next request."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self._source = _Until(self.fp.detach(), sock)
        self.fp = BufferedReader(self._source)

    def begin(self) -> None:
        super().begin()
        while self.status < 200 and not self._source.ended:
            self.headers = None  # type: ignore[assignment] # as before the first one
            super().begin()
        if self._source.ended:
            raise IncompleteRead(b"")


class _Connection(HTTPConnection):
    """Its time limit is for all addresses that the host has, each of which gets its share, and for what comes before
    the first request, too: the library's is for each of them."""

    response_class = _Response

    def _new_conn(self) -> socket.socket:
        end = time.monotonic() + float(self.timeout or 0.0)
        failure: OSError | None = None
        try:
            addresses = socket.getaddrinfo(self._dns_host.strip("[]"), self.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        for number, (family, kind, protocol, _, address) in enumerate(addresses):
            try:
                connection = socket.socket(family, kind, protocol)
            except OSError as error:
                failure = error
                continue
            try:
                for option in _SOCKET_OPTIONS:
                    connection.setsockopt(*option)
                connection.settimeout(max(0.001, (end - time.monotonic()) / (len(addresses) - number)))
                connection.connect(address)
                connection.settimeout(max(0.001, end - time.monotonic()))
                return connection
            except OSError as error:
                failure = error
                connection.close()
        if isinstance(failure, TimeoutError):
            raise ConnectTimeoutError(self, "") from failure
        raise NewConnectionError(self, "") from failure


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _Connections(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSConnections(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


def _pools(proxy: str | None, options: Mapping[str, Any]) -> urllib3.PoolManager:
    """Raises HTTPError for a proxy that cannot be used."""
    if proxy is None:
        pools = urllib3.PoolManager(**options)
    else:
        auth = urllib3.util.parse_url(proxy).auth
        login = {"Proxy-Authorization": f"Basic {b64encode(unquote(auth).encode()).decode()}"} if auth else None
        pools = urllib3.ProxyManager(proxy, proxy_headers=login, **options)
    pools.pool_classes_by_scheme = {"http": _Connections, "https": _TLSConnections}
    return pools


def _proxy(url: SplitResult) -> str | None:
    """That of the environment which leads to a service, if any: none to this machine itself, nor to what NO_PROXY
    names, which may be hosts, with ports or without, addresses, and networks."""
    proxies, host = getproxies(), url.hostname or ""
    if not (proxy := proxies.get(url.scheme)) or host == "localhost":
        return None
    port = url.port or {"https": 443, "http": 80}[url.scheme]
    if proxy_bypass(host) or proxy_bypass(f"{host}:{port}"):
        return None
    with suppress(ValueError):  # the host is no address
        address = ip_address(host)
        if address.is_loopback or any(address in network for network in _networks(proxies.get("no", ""))):
            return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _networks(text: str) -> Iterator[IPv4Network | IPv6Network]:
    for entry in text.split(","):
        with suppress(ValueError):
            yield ip_network(entry.strip().strip("[]"), strict=False)


def _service_url(text: str) -> SplitResult | None:
    """None where it does not name a service, or more than that."""
    try:
        url = urlsplit(text)
        urllib3.util.parse_url(text)
        (url.hostname or "").encode("idna")
        named = url.scheme in ("https", "http") and url.hostname and url.port != 0
    except ValueError:  # a port that is no number, half an address, a name that DNS cannot have
        return None
    return url if named and text.split() == [text] and not ("@" in url.netloc or url.query or url.fragment) else None


_OTHER_NAMES, _OTHER_TIMES = (62, 64), (9, 10)
"""What OpenSSL calls a certificate of another host, and one that is not valid yet or any more."""


_WANTS_TLS = re.compile(rb"HTTP request (was sent )?to (an )?HTTPS (server|port)")
"""In the answers of servers in Go, and of nginx."""


def _tls_words(cause: object, ca_setting: str) -> str:
    if isinstance(cause, ssl.SSLCertVerificationError):
        advice = f"set '{ca_setting}' to the authority that issued it"
        if cause.verify_code in _OTHER_NAMES:
            advice = "write the endpoint as its certificate names the host"
        if cause.verify_code in _OTHER_TIMES:
            advice = "renew it there, or set the clock of this machine"
        return f"its certificate is not trusted ({cause.verify_message}): {advice}"
    reason = getattr(cause, "reason", None) or str(cause)
    advice = ": does it speak TLS?" if reason == "WRONG_VERSION_NUMBER" else ""
    return f"the TLS handshake failed ({reason}){advice}"


def _system_words(error: Exception) -> str:
    cause = error.__cause__
    return os.strerror(cause.errno) if isinstance(cause, OSError) and cause.errno else "no connection"


def _proxy_words(error: ProxyError) -> str:
    match error.original_error:
        case NameResolutionError():
            return "its host name is not known"
        case NewConnectionError() as cause:
            return _system_words(cause)
        case SSLError() as cause:
            return f"the TLS handshake failed: {printable(str(cause))}"
        case urllib3.exceptions.TimeoutError():
            return "it does not answer in time"
        case cause:
            return printable(str(cause))


def printable(text: str) -> str:
    """What a service says, in one line that is not too long."""
    text = " ".join(text.split())
    return "".join(character if character.isprintable() else "?" for character in text[:300])
