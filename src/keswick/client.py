"""The client library: every call of the API as a method, over HTTP/1.1 and mutual TLS.

    with Client("https://127.0.0.1:7373", api_key="kes:v1:…", ca_file="server.crt") as client:
        client.create_key("my-key")
        data_key = client.generate_key("my-key")

A client may be used from several threads; it keeps idle connections for the next call. Replies of every generation of
servers are understood.
"""

import base64
import http.client
import json
import os
import re
import select
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from keswick import pem
from keswick.identity import APIKey, certificate_for

DEFAULT_ENDPOINT = "https://127.0.0.1:7373"
_DEFAULT_PORT = 443  # of every URL without a port, and so it was with the original
_SCHEME = re.compile(r"\Ahttps?://", re.IGNORECASE)
_MAX_REPLY = 64 << 20  # bytes; far above any list, far below what would hurt
_NAME_MISMATCH = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL
_KEY_MISMATCH = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED")  # the same kind of key or another, says OpenSSL
_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED


class APIError(Exception):
    """The server answered, and said no: the HTTP status and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ConnectionFailed(ConnectionError):
    """No answer came from the server. `sent`: whether it may have got the request nevertheless."""

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent


class ServerNotTrusted(ConnectionFailed):
    """The server's certificate chains to nothing that this client trusts, or is not valid now."""


class ServerNameMismatch(ServerNotTrusted):
    """The server's certificate is for other names than the one in the endpoint."""


class ClientRefused(ConnectionFailed):
    """The server did not take the client's certificate, or wants one where there is none."""


class Version(NamedTuple):
    version: str
    commit: str


class Status(NamedTuple):
    version: str
    os: str
    arch: str
    uptime: int
    """Seconds; from servers before October 2023 nanoseconds."""
    num_cpu: int
    num_cpu_used: int
    mem_heap_used: int
    mem_stack_used: int
    keystore_latency: int
    """Milliseconds; 0 when unknown."""
    keystore_unreachable: bool


class KeyInfo(NamedTuple):
    name: str
    algorithm: str
    created_at: str
    """RFC 3339, as the server keeps it."""
    created_by: str
    """An identity, or empty."""


class DataKey(NamedTuple):
    """A new key for data: as it is used, and as it is stored."""

    plaintext: bytes
    ciphertext: bytes

    def __repr__(self) -> str:
        return f"DataKey(<redacted>, {self.ciphertext!r})"


class PolicyInfo(NamedTuple):
    name: str
    created_at: str
    created_by: str
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class IdentityInfo(NamedTuple):
    identity: str
    is_admin: bool
    created_at: str
    created_by: str
    policy: str
    """The name of its policy, or empty."""


class Endpoint(NamedTuple):
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """`https://host:port`, `https://host`, `host:port` or `host`; without a port 443. `http://` is read as
        `https://`."""
        address = _SCHEME.sub("", text.strip()).rstrip("/")
        try:
            parts = urlsplit("https://" + address)
            host, port = parts.hostname, parts.port
            (host or "").encode("idna")  # as the name will be looked up
        except ValueError:
            host = port = None
        if not host or parts.netloc != address or "@" in address:
            raise ValueError(f"'{text}' is not an endpoint such as {DEFAULT_ENDPOINT}")
        return cls(host, _DEFAULT_PORT if port is None else port)

    def __str__(self) -> str:
        return f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"


class _Reply(NamedTuple):
    status: int
    content_type: str
    body: bytes


class Client:
    """Calls the servers at `endpoints`, which share one key store: a call goes to the first that can be reached,
    and later calls begin with that one.

    The client shows itself with an API key, or with the PEM files `cert` and `key`; `password` opens an encrypted key
    (a function is called only if it is). `ca_file`: a PEM file, or a folder of hashed ones, trusted instead of the
    system's roots. `verify=False` takes any server for the right one. `timeout`: seconds without progress.

    Raises ValueError or OSError when a credential or file cannot be used. Every call raises APIError when the server
    refuses it, and ConnectionFailed when no server answers.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str] = DEFAULT_ENDPOINT,
        *,
        api_key: APIKey | str | None = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        password: str | Callable[[], str] | None = None,
        ca_file: str | Path | None = None,
        verify: bool = True,
        timeout: float = 15.0,
    ) -> None:
        texts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
        self._endpoints = [Endpoint.parse(text) for text in texts if text.strip()]
        if not self._endpoints:
            raise ValueError("no endpoint given")
        self._timeout = timeout
        self._idle: deque[tuple[Endpoint, http.client.HTTPSConnection]] = deque()
        self._context = _tls_context(ca_file, verify)
        if api_key is not None:
            if cert is not None or key is not None:
                raise ValueError("an API key and a certificate cannot be used at the same time")
            pair = certificate_for(APIKey.parse(api_key) if isinstance(api_key, str) else api_key)
            _load_credentials(self._context, pair.certificate_pem, pair.key_pem())
        elif cert is not None and key is not None:
            _load_credentials(self._context, _read_certificates(Path(cert)), _read_key(Path(key), password))
        elif cert is not None or key is not None:
            raise ValueError("a certificate and its private key are needed together")

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the idle connections. The client can be used again."""
        while self._idle:
            self._idle.pop()[1].close()

    # --- keys ---

    def create_key(self, name: str) -> None:
        self._call("POST", f"/v1/key/create/{_quote(name)}", repeatable=False)

    def import_key(self, name: str, key: bytes, cipher: str = "AES256") -> None:
        """`key`: 32 bytes. `cipher`: `AES256` or `ChaCha20`."""
        body = {"key": _encode(key), "cipher": cipher}
        self._call("POST", f"/v1/key/import/{_quote(name)}", body, repeatable=False)

    def describe_key(self, name: str) -> KeyInfo:
        reply = self._object("GET", f"/v1/key/describe/{_quote(name)}")
        return KeyInfo(name, _text(reply, "algorithm"), _text(reply, "created_at"), _text(reply, "created_by"))

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        """All names that begin with `prefix`, page by page as they are asked for."""
        yield from self._list("/v1/key/list/", prefix, "names", "name")

    def delete_key(self, name: str) -> None:
        self._call("DELETE", f"/v1/key/delete/{_quote(name)}", repeatable=False)

    def encrypt(self, name: str, plaintext: bytes, context: bytes = b"") -> bytes:
        """The ciphertext. `context` is authenticated with it, and has to be given again to decrypt."""
        body = {"plaintext": _encode(plaintext), "context": _encode(context)}
        return _bytes(self._object("POST", f"/v1/key/encrypt/{_quote(name)}", body), "ciphertext")

    def decrypt(self, name: str, ciphertext: bytes, context: bytes = b"") -> bytes:
        body = {"ciphertext": _encode(ciphertext), "context": _encode(context)}
        return _bytes(self._object("POST", f"/v1/key/decrypt/{_quote(name)}", body), "plaintext")

    def generate_key(self, name: str, context: bytes = b"") -> DataKey:
        reply = self._object("POST", f"/v1/key/generate/{_quote(name)}", {"context": _encode(context)})
        return DataKey(_bytes(reply, "plaintext"), _bytes(reply, "ciphertext"))

    def hmac(self, name: str, message: bytes) -> bytes:
        """32 bytes: the HMAC-SHA-256 of the message under the key's own HMAC key."""
        return _bytes(self._object("POST", f"/v1/key/hmac/{_quote(name)}", {"message": _encode(message)}), "hmac")

    # --- policies and identities ---

    def describe_policy(self, name: str) -> PolicyInfo:
        """The policy with its rules."""
        return _policy(self._object("GET", f"/v1/policy/read/{_quote(name, 'policy name')}"), name)

    def list_policies(self, prefix: str = "") -> Iterator[str]:
        yield from self._list("/v1/policy/list/", prefix, "names", "name")

    def describe_identity(self, identity: str) -> IdentityInfo:
        reply = self._object("GET", f"/v1/identity/describe/{_quote(identity, 'identity')}")
        return _identity(reply, identity, _text(reply, "policy"))

    def describe_self(self) -> tuple[IdentityInfo, PolicyInfo | None]:
        """Who the server takes this client for, and its policy if there is one."""
        reply = self._object("GET", "/v1/identity/self/describe")
        policy = reply.get("policy")
        info = _policy(policy, _text(policy, "name")) if isinstance(policy, dict) else None
        return _identity(reply, _text(reply, "identity"), info.name if info else ""), info

    def list_identities(self, prefix: str = "") -> Iterator[str]:
        yield from self._list("/v1/identity/list/", prefix, "identities", "identity")

    # --- the server ---

    def version(self) -> Version:
        reply = self._object("GET", "/version")
        return Version(_text(reply, "version"), _text(reply, "commit"))

    def status(self) -> Status:
        reply = self._object("GET", "/v1/status")
        return Status(
            _text(reply, "version"),
            _text(reply, "os"),
            _text(reply, "arch"),
            _number(reply, "uptime"),
            _number(reply, "num_cpu"),
            _number(reply, "num_cpu_used"),
            _number(reply, "mem_heap_used"),
            _number(reply, "mem_stack_used"),
            _number(reply, "keystore_latency"),
            reply.get("keystore_unreachable") is True,
        )

    def ready(self) -> None:
        """Raises APIError 504 while the key store is away, 502 when it is not as it should be."""
        self._call("GET", "/v1/ready")

    # --- one call ---

    def _list(self, path: str, prefix: str, field_: str, line_field: str) -> Iterator[str]:
        # With the asterisk every generation lists by prefix; without it the older ones look for that very name.
        resource = prefix if prefix.endswith("*") else prefix + "*"
        while resource:
            reply = self._call("GET", path + _quote(resource, "prefix"))
            names, following = _names(reply, field_, line_field)
            yield from names
            if following and ("~" not in following or following == resource):
                # The releases since October 2023 take their token for a prefix, and lose most of what follows.
                raise APIError(reply.status, "there are more names than this server can list; narrow the prefix")
            resource = following

    def _object(self, method: str, path: str, body: dict[str, str] | None = None) -> dict[str, Any]:
        reply = self._call(method, path, body)
        decoded = _json(reply, reply.body)
        if not isinstance(decoded, dict):
            raise _not_understood(reply)
        return decoded

    def _call(self, method: str, path: str, body: dict[str, str] | None = None, *, repeatable: bool = True) -> _Reply:
        """One call to the first endpoint that answers. What must not be done twice is sent again only if it never left
        this machine."""
        failures = []
        for endpoint in self._endpoints:
            try:
                reply = self._exchange(endpoint, method, path, body, repeatable)
            except ConnectionFailed as failure:
                if failure.sent and not repeatable:
                    raise
                failures.append(failure)
                continue
            if failures:  # begin with the one that answers from now on
                self._endpoints = [endpoint, *(other for other in self._endpoints if other != endpoint)]
            return _checked(reply)
        if len(failures) == 1:
            raise failures[0]
        raise ConnectionFailed("no server answers: " + "; ".join(map(str, failures))) from failures[0]

    def _exchange(
        self, endpoint: Endpoint, method: str, path: str, body: dict[str, str] | None, repeatable: bool
    ) -> _Reply:
        connection = self._take_idle(endpoint)
        if connection is not None:
            try:
                return self._converse(endpoint, connection, method, path, body)
            except ConnectionFailed:
                if not repeatable:
                    raise
                # The server may have ended the idle connection just now: a new one tells.
        return self._converse(endpoint, self._connect(endpoint), method, path, body)

    def _connect(self, endpoint: Endpoint) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(
            endpoint.host, endpoint.port, timeout=self._timeout, context=self._context
        )
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise _explained(endpoint, error, sent=False) from error
        return connection

    def _take_idle(self, endpoint: Endpoint) -> http.client.HTTPSConnection | None:
        for _ in range(len(self._idle)):
            try:
                owner, connection = self._idle.pop()
            except IndexError:  # another thread was quicker
                return None
            if owner != endpoint:
                self._idle.appendleft((owner, connection))
            elif _has_input(connection):
                connection.close()  # what comes without being asked for is the end of the connection
            else:
                return connection
        return None

    def _converse(
        self,
        endpoint: Endpoint,
        connection: http.client.HTTPSConnection,
        method: str,
        path: str,
        body: dict[str, str] | None,
    ) -> _Reply:
        try:
            if body is None:
                connection.request(method, path)
            else:
                connection.request(method, path, json.dumps(body).encode(), {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = response.read(_MAX_REPLY + 1)
            if response.length and len(data) <= _MAX_REPLY:
                raise http.client.IncompleteRead(data, response.length)
        except (OSError, http.client.HTTPException) as error:
            reason = _last_word(connection, error)
            connection.close()
            raise _explained(endpoint, reason, sent=True) from error
        except BaseException:  # an interrupt: the connection is in the middle of something
            connection.close()
            raise
        if response.will_close or len(data) > _MAX_REPLY:
            connection.close()
        else:
            self._idle.append((endpoint, connection))
        if len(data) > _MAX_REPLY:
            raise APIError(response.status, f"the reply of {endpoint} is longer than {_MAX_REPLY} bytes")
        return _Reply(response.status, response.headers.get_content_type(), data)


def _last_word(connection: http.client.HTTPSConnection, error: Exception) -> Exception:
    """The alert that the server sent before it closed, if the end was noticed while sending; else the error itself."""
    if isinstance(error, ConnectionError | ssl.SSLEOFError) and connection.sock is not None:
        try:
            connection.sock.recv(1)
        except ssl.SSLError as alert:
            return alert
        except OSError:
            pass
    return error


def _has_input(connection: http.client.HTTPSConnection) -> bool:
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


# --- credentials ---


def _tls_context(ca_file: str | Path | None, verify: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # a server's own certificate may be the root
    if ca_file is None:
        context.load_default_certs()  # also what SSL_CERT_FILE and SSL_CERT_DIR name
    else:
        path = Path(ca_file)
        try:
            context.load_verify_locations(**{"capath" if path.is_dir() else "cafile": str(path)})
        except ssl.SSLError:
            raise ValueError(f"'{path}' contains no PEM certificate to trust") from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
    return context


def _read_certificates(path: Path) -> str:
    try:
        blocks = pem.blocks(path.read_text("ascii", "replace"))
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    if other := next((block.label for block in blocks if block.label != "CERTIFICATE"), None):
        raise ValueError(f"'{path}' contains a PEM block '{other}'; a certificate file holds certificates only")
    if not blocks:
        raise ValueError(f"'{path}' contains no PEM certificate")
    return "".join(block.text for block in blocks)


def _read_key(path: Path, password: str | Callable[[], str] | None) -> str:
    try:
        blocks = pem.blocks(path.read_text("ascii", "replace"))
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    block = next((block for block in blocks if block.is_private_key), None)
    if block is None:
        raise ValueError(f"'{path}' contains no PEM private key")
    if not block.is_encrypted:
        return block.text
    if password is None:
        raise ValueError(f"the private key in '{path}' is encrypted: a password is needed")
    return pem.encode("PRIVATE KEY", pem.decrypt(block, password if isinstance(password, str) else password()))


def _load_credentials(context: ssl.SSLContext, certificates: str, key: str) -> None:
    with _private_file((certificates + key).encode()) as path:
        try:
            context.load_cert_chain(path)
        except ssl.SSLError as error:
            if error.reason in _KEY_MISMATCH:
                raise ValueError("the private key does not belong to the certificate") from None
            raise ValueError(f"the certificate or its private key cannot be used: {error.reason or error}") from None


@contextmanager
def _private_file(content: bytes) -> Iterator[str]:
    """A path that Python's `ssl` can read and nobody else, gone afterwards: it takes private keys from files only."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("credentials"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        import tempfile

        with tempfile.NamedTemporaryFile() as named:  # its mode is 0600
            named.write(content)
            named.flush()
            yield named.name


# --- replies ---


def _explained(endpoint: Endpoint, error: Exception, *, sent: bool) -> ConnectionFailed:
    """The same failure in words that say what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NAME_MISMATCH:
            return ServerNameMismatch(
                f"the certificate of {endpoint} is not valid for '{endpoint.host}': use a name or address that is in "
                "the certificate, or make one with this name in its subjectAltName"
            )
        if error.verify_code == _EXPIRED:
            return ServerNotTrusted(f"the certificate of {endpoint} has expired: the server needs a new one")
        return ServerNotTrusted(
            f"the certificate of {endpoint} is not trusted ({error.verify_message}): set KES_CA_FILE to a PEM file "
            "with the certificate of the server or of its CA"
        )
    if isinstance(error, ssl.SSLError) and error.reason and not isinstance(error, ssl.SSLEOFError):
        if error.reason in ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE"):
            return ClientRefused(
                f"{endpoint} demands a client certificate: give an API key, or a certificate and its key"
            )
        if "_ALERT_" in error.reason:
            alert = error.reason.partition("_ALERT_")[2].replace("_", " ").lower()
            if "certificate" in alert or alert in ("unknown ca", "access denied", "decrypt error"):
                return ClientRefused(f"{endpoint} does not accept the client certificate ({alert})")
            return ConnectionFailed(f"{endpoint} refuses the TLS connection ({alert})")
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return ConnectionFailed(f"{endpoint} does not speak TLS")
        return ConnectionFailed(f"no TLS connection to {endpoint}: {error.reason.replace('_', ' ').lower()}", sent=sent)
    if isinstance(error, ConnectionRefusedError):
        return ConnectionFailed(f"cannot connect to {endpoint}: connection refused; does a server run there?")
    if isinstance(error, TimeoutError):
        what = "answer" if sent else "let anyone connect"
        return ConnectionFailed(f"{endpoint} does not {what} in time", sent=sent)
    if isinstance(error, ConnectionError | ssl.SSLEOFError):
        return ConnectionFailed(f"{endpoint} closed the connection without an answer", sent=sent)
    if isinstance(error, http.client.HTTPException):
        return ConnectionFailed(f"{endpoint} does not answer as an HTTP server: {type(error).__name__}", sent=sent)
    reason = getattr(error, "strerror", None) or str(error)
    return ConnectionFailed(f"cannot connect to {endpoint}: {reason}", sent=sent)


def _checked(reply: _Reply) -> _Reply:
    if reply.status == 200:
        return reply
    try:
        decoded = json.loads(reply.body)
        message = decoded.get("error") or decoded["message"]
    except (ValueError, AttributeError, KeyError, RecursionError):
        message = None
    if not isinstance(message, str):
        text = reply.body.decode("utf-8", "replace").strip()
        message = text if reply.content_type == "text/plain" and 0 < len(text) < 200 else ""
        reason = http.client.responses.get(reply.status, "")
        message = message or f"HTTP status {reply.status} {reason}".rstrip()
    raise APIError(reply.status, message)


def _names(reply: _Reply, field_: str, line_field: str) -> tuple[list[str], str]:
    """The names of one page, and what to ask for to get the next, or nothing.

    `{"names": […], "continue_at": …}` today; one object per line, array or map of identities before October 2023.
    """
    if reply.content_type == "application/x-ndjson":
        items = [_json(reply, line) for line in reply.body.splitlines()]
    else:
        decoded = _json(reply, reply.body)
        if isinstance(decoded, dict) and isinstance(decoded.get(field_), list):
            return [_string(reply, name) for name in decoded[field_]], _text(decoded, "continue_at")
        items = list(decoded) if isinstance(decoded, dict | list) else [decoded]
    names = []
    for item in items:
        if isinstance(item, dict):
            if isinstance(item.get("error"), str):
                raise APIError(reply.status, item["error"])
            item = item.get(line_field, item.get(line_field.title()))
        names.append(_string(reply, item))
    return names, ""


def _policy(reply: dict[str, Any], name: str) -> PolicyInfo:
    return PolicyInfo(
        name,
        _text(reply, "created_at"),
        _text(reply, "created_by"),
        # An object whose keys are the rules today, an array before, `paths` in 2021.
        tuple(reply.get("allow") or reply.get("paths") or ()),
        tuple(reply.get("deny") or ()),
    )


def _identity(reply: dict[str, Any], identity: str, policy: str) -> IdentityInfo:
    is_admin = reply.get("admin") is True
    return IdentityInfo(identity, is_admin, _text(reply, "created_at"), _text(reply, "created_by"), policy)


def _json(reply: _Reply, text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _not_understood(reply) from None


def _not_understood(reply: _Reply) -> APIError:
    return APIError(reply.status, "the reply is not what a KES server sends; is the endpoint right?")


def _string(reply: _Reply, value: object) -> str:
    if not isinstance(value, str):
        raise _not_understood(reply)
    return value


def _text(reply: dict[str, Any], name: str) -> str:
    value = reply.get(name)
    return value if isinstance(value, str) else ""


def _number(reply: dict[str, Any], name: str) -> int:
    value = reply.get(name)
    return value if isinstance(value, int) else 0


def _bytes(reply: dict[str, Any], name: str) -> bytes:
    """Old servers send an empty text as null."""
    try:
        return base64.b64decode(reply.get(name) or "", validate=True)
    except (ValueError, TypeError):
        raise APIError(200, f"the '{name}' of the reply is not base64") from None


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _quote(name: str, what: str = "key name") -> str:
    """A name as one path segment; arguments that were not UTF-8 keep their bytes.

    Raises ValueError for what servers would take for another path, as `.` and `a//b`, in the words that they have for
    names.
    """
    if not {"", ".", ".."}.isdisjoint(name.split("/")):
        raise ValueError(f"{what} '{name}' is empty, too long or contains invalid characters")
    return quote(name, safe="", errors="surrogateescape")
