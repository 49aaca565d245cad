"""The native part of Keswick: sockets, TLS, HTTP/1.1 and HTTP/2, certificates, and the sealing primitives.

It moves bytes and decides nothing: it knows no route, no policy and no key name. Everything here is safe to call from
any Python thread; blocking calls release the GIL.
"""

from collections.abc import Callable, Sequence
from typing import Any, final

# --- certificates -----------------------------------------------------------------------------------------------

@final
class Certificate:
    """One parsed X.509 certificate, version 1 to 3. Raises ValueError when `der` is not one."""

    def __new__(cls, der: bytes) -> Certificate: ...
    @property
    def der(self) -> bytes: ...
    @property
    def public_key(self) -> bytes:
        """The DER of the SubjectPublicKeyInfo, the bytes an identity is the hash of."""
    @property
    def is_ca(self) -> bool:
        """Whether the basic constraints say CA. A certificate without the extension is not a CA."""
    @property
    def not_before(self) -> int:
        """Seconds since 1970, UTC."""
    @property
    def not_after(self) -> int:
        """Seconds since 1970, UTC."""
    @property
    def dns_names(self) -> list[str]: ...
    @property
    def ip_addresses(self) -> list[str]: ...
    @property
    def subject(self) -> str:
        """For people, such as `CN=localhost`."""

@final
class Verifier:
    """Root certificates (DER), for the check of certificates that no handshake brings, such as those a TLS proxy
    forwards.

    The same check as in a handshake under `Tls(verify=True)`. Raises ValueError when a root cannot be used.
    """

    def __new__(cls, roots: Sequence[bytes]) -> Verifier: ...
    def verify(self, certificates: Sequence[bytes], *, server_auth: bool = False) -> None:
        """ValueError, in words, unless the chain (DER, leaf first) ends in a root, is in time, and its extended key
        usage is clientAuth, any or absent (or serverAuth, if `server_auth`). A leaf that is itself a root needs no
        issuer."""

# --- transport --------------------------------------------------------------------------------------------------

@final
class Tls:
    """What a handshake needs, immutable: a server certificate and the demand on clients.

    `certificates`: the server's chain, DER, leaf first. `key`: its private key, DER (PKCS#8, PKCS#1 or SEC1).
    `client_auth`: "none" (no certificate is asked for), "request" (asked for, may be absent), "require" (must be
    there). `verify`: whether a client certificate must chain to one of `roots` (DER), be in time and allow
    clientAuth (clientAuth, any or no extended key usage); when False any certificate passes, expired, self-signed
    and X.509 v1 ones too. The handshake signature is checked always. Each value has session storage and ticket keys
    of its own. Raises ValueError, in plain words, when the certificate and the key do not fit or cannot be used.
    """

    def __new__(
        cls,
        *,
        certificates: Sequence[bytes],
        key: bytes,
        client_auth: str = "require",
        verify: bool = False,
        roots: Sequence[bytes] = (),
    ) -> Tls: ...

@final
class Headers:
    """A prepared set of response headers, made once and sent many times. `Date` and `Content-Length` are added."""

    def __new__(cls, fields: Sequence[tuple[str, str]] = ()) -> Headers: ...

Reply = tuple[int, Headers, bytes]
"""status, headers, body"""

@final
class Connection:
    """One client connection; the same object for all its requests."""

    @property
    def peer(self) -> str:
        """The client's IP address (IPv4-mapped addresses as IPv4), without the port: the TCP peer's, or the one that a
        proxy named in its PROXY header."""
    @property
    def certificates(self) -> list[bytes]:
        """The client's certificates, DER, as they came: the leaf first. Empty when there are none."""
    state: Any
    """A slot for the caller, None at first: what is computed once per connection is kept here."""

@final
class Request:
    """One request, its body read whole (or cut at the limit)."""

    @property
    def connection(self) -> Connection: ...
    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str:
        """As sent, still percent-encoded, without the query."""
    @property
    def query(self) -> str:
        """Without the question mark; empty when there is none."""
    @property
    def body(self) -> bytes:
        """At most as many bytes as the body limit of the decoded path."""
    @property
    def truncated(self) -> bool:
        """Whether the body went on past the limit; the rest was read and dropped."""
    def header(self, name: str) -> str | None:
        """The first header of that name (any case), or None. Bytes that are not ASCII are read as Latin-1."""
    def headers(self, name: str) -> list[str]:
        """All header lines of that name, in order."""
    def respond(self, status: int, headers: Headers, body: bytes) -> bool:
        """Answer a request for which the handler returned None. False when the client has gone or an answer was given
        already. A request dropped without an answer is answered 500."""
    def stream(self, status: int, headers: Headers, *, capacity: int = 256) -> Stream:
        """Answer with a body that is sent piece by piece; at most `capacity` pieces wait to be sent."""
    @property
    def gone(self) -> bool:
        """Whether the client has gone away."""

@final
class Stream:
    """The body of an answer, sent piece by piece. Status and headers go out at once."""

    def send(self, data: bytes) -> bool:
        """Queue a piece, never waiting. False when the queue is full (the piece is not sent) or the client has gone."""
    @property
    def closed(self) -> bool:
        """Whether the client has gone or the stream was closed."""
    def on_close(self, callback: Callable[[], None]) -> None:
        """Call once, on a native thread, when the client goes away or the stream is closed; at once if it is closed."""
    def close(self) -> None:
        """End the body cleanly. Dropping the last reference does the same."""

@final
class Server:
    """A listening socket with its native threads.

    `handler(request)` is called on the one I/O thread for every request and returns a `Reply`, or None when the answer
    comes later through `request.respond` or `request.stream`. An exception is answered 500 and goes to
    `sys.unraisablehook`.

    `tls=None` is plain TCP (HTTP/1.1 only), for a listener that shows no secret.
    `body_limits`: (path prefix, bytes) pairs, matched on the percent-decoded path; the longest matching prefix wins, a
    path that none matches has limit 0.
    `limits`: the bounds, see `DEFAULT_LIMITS`. `replies`: the answers that the transport gives itself, by name:
    "overload" (a bound is reached), "timeout" (the body did not come in time), "too_large" (the body goes on past its
    limit and `drained_bytes`; as soon as its Content-Length says so), "malformed" (no Host or several over HTTP/1.1, or
    a body that breaks the protocol), "error" (the handler failed). Unless given they are empty, with the status 503,
    408, 413, 400, 500.

    `proxy_protocol`: (networks, seconds). From these networks (CIDR, IPv4 or IPv6, or single addresses) each connection
    has to begin with a PROXY header, version 2, within so many seconds, before TLS. Its command PROXY with TCP over
    IPv4 or IPv6 names the client; with LOCAL, or any other family, the connection keeps its own address. A header
    whose CRC32C does not fit, with more than 4,096 bytes after its first 16, malformed or missing ends the connection,
    and so does a header of either version from any other address; `take_handshake_errors` tells. The bound of pending
    handshakes per address is for the clients that a proxy names, not for the proxy. ValueError, in plain words, for
    what is no network, and for the networks of all addresses.

    The socket is bound by the constructor: OSError when the address cannot be had.
    """

    def __new__(
        cls,
        handler: Callable[[Request], Reply | None],
        *,
        host: str,
        port: int,
        tls: Tls | None,
        body_limits: Sequence[tuple[str, int]] = (),
        limits: dict[str, float] | None = None,
        replies: dict[str, Reply] | None = None,
        proxy_protocol: tuple[Sequence[str], float] | None = None,
    ) -> Server: ...
    @property
    def address(self) -> tuple[str, int]:
        """The bound host and port."""
    def start(self) -> None:
        """Begin to accept."""
    def set_tls(self, tls: Tls, *, drain: bool = False) -> None:
        """Use `tls` for new handshakes. With `drain`, connections made before are asked to end (GOAWAY, `Connection:
        close`) when their running requests are answered. So are those whose handshake is under way."""
    def drain(self, linger: float = 0.0) -> None:
        """Stop accepting, send GOAWAY and `Connection: close`, let running requests end; streams are cut. Returns at
        once.

        Over HTTP/1.1 only an answer can say that it is the last one; a request that crosses the end of an idle
        connection gets none, and proxies do not repeat every request. So idle connections stay open for `linger`
        seconds, in which each may bring one more request; then they are closed, after a last look at what has come in.

        Connections that the kernel has accepted are served. A client that has just connected has 3 seconds (`linger`,
        if that is longer) for its handshake, and 3 for its first request."""
    def wait_drained(self, seconds: float) -> bool:
        """Wait until no connection is left, and after `drain` none is to come, at most `seconds`. Whether none is
        left."""
    def close(self) -> None:
        """Cut everything, end the threads. Idempotent."""
    def stats(self) -> dict[str, int]:
        """Figures now and since the start: `connections`, `handshakes` (pending), `requests` (in flight), `buffered`
        (bytes), `connections_total`, `handshakes_failed_total`, `refused_total` (connections or handshakes over a
        bound), and the requests answered without the handler, by reply: `overload_total`, `timeout_total`,
        `too_large_total`, `malformed_total`."""
    def take_handshake_errors(self) -> list[tuple[str, str]]:
        """The (peer, reason) of failed handshakes since the last call, the newest 64 at most, for the error log."""
    def take_own_answers(self) -> list[tuple[str, str, int]]:
        """The (peer, path as sent, status) of requests answered without the handler since the last call, the newest
        1,024 at most, for the audit log.

        What is refused before it is a request is not among them and not counted: a header that is no HTTP (400), is too
        large or has too many lines (431), and what breaks HTTP/2."""

DEFAULT_LIMITS: dict[str, float]
"""Every bound on what a stranger can grow, by name, with its default. Bytes, seconds or counts:

    connections              10000   over it, 256 more are answered "overload" and closed, others closed at once
    handshakes                1024   pending handshakes; over it the oldest one is dropped, of the address with most of
                                     them if that is over its own bound
    handshakes_per_address     128   per peer address; over it those that have had their grace are dropped
    handshake_grace_seconds      1   the grace
    handshake_seconds           10   a handshake that takes longer is dropped
    header_bytes             16384   of one request; over it 431
    headers                    100   header lines of one request (HTTP/1.1); over it 431
    header_seconds               5   from the first byte of a request's header to its last (HTTP/1.1)
    idle_seconds                90   a connection without a request is closed
    body_seconds                15   a body that takes longer is answered "timeout"
    write_seconds               30   a client that reads nothing for so long is cut
    streams                    250   concurrent requests on one HTTP/2 connection
    requests                  2048   in flight together; over it "overload"
    buffered_bytes        67108864   request bodies and unsent answers together; over it "overload"
    drained_bytes         67108864   of a body past its limit that are read and dropped; over it "too_large"
"""

# --- sealing ----------------------------------------------------------------------------------------------------

@final
class SealingKey:
    """A 32-byte key for one cipher, "AES256" or "ChaCha20". Its memory is wiped when it goes. The repr shows no secret.

    A sealed text is C || IV(16) || N(12): C is AES-256-GCM or ChaCha20-Poly1305 ciphertext with its tag, nonce N, under
    the message key HMAC-SHA-256(key, IV) or HChaCha20(key, IV). ValueError when the key is not 32 bytes or the cipher
    unknown.
    """

    def __new__(cls, cipher: str, key: bytes) -> SealingKey: ...
    @property
    def cipher(self) -> str: ...
    def seal(self, plaintext: bytes, associated_data: bytes) -> bytes: ...
    def open(self, sealed: bytes, associated_data: bytes) -> bytes:
        """ValueError when it is not authentic, for whatever reason."""
    def generate(self, associated_data: bytes) -> tuple[bytes, bytes]:
        """32 new random bytes, and the same sealed."""
    def open_2019(self, sealed: bytes, associated_data: bytes) -> bytes:
        """As `open`, with the AES message key derived as the releases of 2019 did (docs/formats.md, generation 0)."""

def hmac_sha256(key: bytes, message: bytes) -> bytes: ...

# --- process ----------------------------------------------------------------------------------------------------

def lock_memory() -> bool:
    """Keep all pages out of swap, present and future ones as they are touched (MCL_ONFAULT), if the process has the
    capability or an unlimited limit. Whether it is done."""

def forbid_core_dumps() -> None:
    """RLIMIT_CORE=0 and PR_SET_DUMPABLE=0."""

# --- client -----------------------------------------------------------------------------------------------------

class CallFailed(Exception):
    """A call brought no answer. `args` is `(kind, detail, sent)`; `str()` is for developers, Python finds the words.

    `kind` is one of

    - before the connection stands: "resolve" (no address for the host), "refused", "connect_timeout", "connect"
      (anything else; `detail` is what the system says);
    - in the handshake: "no_tls" (the peer speaks something else), "name" (the certificate is for other names),
      "expired", "not_yet_valid", "untrusted" (`detail` says why), "alert" (`detail` is the name of the alert that the
      server sent, in lower case, such as "certificate required"), "tls" (anything else; `detail` says what);
    - after it: "closed" (the connection ended without a whole answer), "timeout" (no whole answer in time), "protocol"
      (not HTTP), "too_long" (the answer is longer than `max_reply`), "cancelled".

    `sent`: whether the server may have got the request nevertheless. With TLS 1.3 the server's refusal of the client's
    certificate comes after the handshake: it is an "alert" even if the request was on its way, and `sent` is False.
    """

@final
class ClientTls:
    """What a client trusts and shows, immutable.

    `roots`: DER certificates that the server's must chain to, or be itself one of (then it may be of any kind, but its
    names and dates count); None takes any server. `certificates` and `key`: what the client shows, as of `Tls`.
    Nothing is written to a file. Raises ValueError, in plain words, when the certificate and the key do not fit or
    cannot be used; roots that cannot be used are passed over unless none is left.
    """

    def __new__(
        cls, *, roots: Sequence[bytes] | None, certificates: Sequence[bytes] = (), key: bytes = b""
    ) -> ClientTls: ...

Answer = tuple[int, str, bytes]
"""status, the value of Content-Type (empty without one), body"""

@final
class HttpClient:
    """Calls over HTTPS: HTTP/2 where the server offers it (and `http2`), else HTTP/1.1. Connections are kept and used
    again; HTTP/2 calls share one per server. May be used from any thread; one native thread serves all clients of the
    process. Works again in the child of a fork, with new connections.

    `connect_timeout`: seconds for resolving, connecting and the handshake. `idle_timeout`: seconds that an unused
    connection is kept. `max_reply`: bytes.
    """

    def __new__(
        cls,
        tls: ClientTls,
        *,
        connect_timeout: float = 5.0,
        idle_timeout: float = 60.0,
        max_reply: int = 64 << 20,
        http2: bool = True,
        user_agent: str = "",
    ) -> HttpClient: ...
    def call(
        self,
        host: str,
        port: int,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        accept: str = "",
        timeout: float | None,
    ) -> Answer:
        """One call; blocks without the GIL. `path`: percent-encoded, perhaps with a query. A `body` is sent as JSON.
        `timeout`: seconds from the request to the end of the answer, None for ever. Signal handlers run while it
        waits, and their exception (KeyboardInterrupt) ends the call. Raises CallFailed, ValueError for what is no
        URL or header, and RuntimeError on the native thread, where a callback must not wait."""
    def begin(
        self,
        done: Callable[[Answer | CallFailed], object],
        host: str,
        port: int,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        accept: str = "",
        timeout: float | None,
    ) -> Pending:
        """The same, without waiting: `done` is called once, on a native thread, unless the call is cancelled before
        or the interpreter ends. Its exceptions go to `sys.unraisablehook`."""
    def open(self, host: str, port: int, path: str, *, accept: str = "", timeout: float | None) -> Reader:
        """GET an answer whose body is read piece by piece; `timeout` is for its beginning. Blocks like `call`."""
    def begin_open(
        self,
        done: Callable[[Reader | CallFailed], object],
        host: str,
        port: int,
        path: str,
        *,
        accept: str = "",
        timeout: float | None,
    ) -> Pending: ...
    def close(self) -> None:
        """End idle connections, and others when their calls end. The client can be used again."""

@final
class Pending:
    def cancel(self) -> None:
        """End the call; `done` will not be called (unless it is running just now). Idempotent."""

@final
class Reader:
    """An answer whose body comes piece by piece."""

    @property
    def status(self) -> int: ...
    def header(self, name: str) -> str:
        """The value of a header, empty if there is none."""
    def read(self, *, timeout: float | None) -> bytes:
        """The next piece, of any size; empty at the end of the body. Blocks like `HttpClient.call`; after CallFailed
        "timeout" the next call goes on, and nothing is lost."""
    def begin_read(self, done: Callable[[bytes | CallFailed], object], *, timeout: float | None) -> Pending:
        """A cancelled read loses nothing."""
    def close(self) -> None:
        """End the call; a waiting read gets CallFailed "closed"."""

def peer_certificates(host: str, port: int, *, server_name: str = "", timeout: float) -> list[bytes]:
    """What a server shows in a handshake, DER, the leaf first, whatever it is worth; also of a server that then refuses
    a client without a certificate. Blocks without the GIL. Raises CallFailed."""

def self_signed(
    key: bytes | None,
    subject: str,
    *,
    not_before: int,
    not_after: int,
    dns: Sequence[str] = (),
    ips: Sequence[str] = (),
    client: bool = False,
    server: bool = False,
) -> tuple[bytes, bytes, bytes]:
    """A self-signed certificate for the Ed25519 seed `key` (32 bytes), or for a new P-256 key: its DER, the private key
    (PKCS#8 DER) and the public key (SubjectPublicKeyInfo DER).

    Version 3, a random serial number of 128 bits, common name `subject`, times in seconds since 1970, key usage
    digitalSignature (critical), the extended key usages asked for, CA:FALSE (critical), the alternative names if there
    are any. Raises ValueError, in plain words.
    """

def public_key_of(seed: bytes) -> bytes:
    """The SubjectPublicKeyInfo (DER) of the Ed25519 private key with that seed of 32 bytes."""
