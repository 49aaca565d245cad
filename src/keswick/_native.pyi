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
        """The IP address of the TCP peer (IPv4-mapped addresses as IPv4), without the port."""
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
    ) -> Server: ...
    @property
    def address(self) -> tuple[str, int]:
        """The bound host and port."""
    def start(self) -> None:
        """Begin to accept."""
    def set_tls(self, tls: Tls, *, drain: bool = False) -> None:
        """Use `tls` for new handshakes. With `drain`, connections made before are asked to end (GOAWAY, `Connection:
        close`) when their running requests are answered."""
    def drain(self) -> None:
        """Stop accepting, send GOAWAY and `Connection: close`, let running requests end; streams are cut. Returns at
        once."""
    def wait_drained(self, seconds: float) -> bool:
        """Wait until no connection is left, at most `seconds`. Whether none is left."""
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
    handshakes                1024   pending handshakes; over it the oldest pending one is dropped
    handshakes_per_address     128   the same per peer address
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
