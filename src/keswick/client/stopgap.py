"""The face of the native client over the standard library, until the native one takes its place."""

import contextlib
import http.client
import os
import select
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from keswick import pem


class CallFailed(Exception):
    pass


class ClientTls:
    def __init__(self, *, roots: Sequence[bytes] | None, certificates: Sequence[bytes] = (), key: bytes = b"") -> None:
        self.context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if roots is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
            for root in roots:
                with contextlib.suppress(ssl.SSLError):
                    context.load_verify_locations(cadata=root)
        if certificates:
            text = "".join(pem.encode("CERTIFICATE", der) for der in certificates)
            with os.fdopen(os.memfd_create("credentials"), "wb") as file:
                file.write((text + _key_pem(key)).encode())
                file.flush()
                try:
                    context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
                except ssl.SSLError as error:
                    if error.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
                        raise ValueError("the private key does not belong to the certificate") from None
                    raise ValueError(f"the certificate or its private key cannot be used: {error.reason}") from None


def _key_pem(der: bytes) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

    key = load_der_private_key(der, None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


class Pending:
    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Reader:
    def __init__(self, connection: http.client.HTTPSConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "")

    def read(self, *, timeout: float | None) -> bytes:
        try:
            return self._response.read1(65536)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise CallFailed("closed", str(error), True) from None

    def begin_read(self, done: Callable[[Any], object], *, timeout: float | None) -> Pending:
        return _in_thread(done, lambda: self.read(timeout=timeout))

    def close(self) -> None:
        if self._connection.sock is not None:
            with contextlib.suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class HttpClient:
    def __init__(
        self, tls: ClientTls, *, connect_timeout: float = 5.0, http2: bool = True, user_agent: str = ""
    ) -> None:
        self._tls, self._connect_timeout = tls, connect_timeout
        self._idle: deque[tuple[tuple[str, int], http.client.HTTPSConnection]] = deque()

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()

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
    ) -> tuple[int, str, bytes]:
        idle = self._take_idle((host, port))
        if idle is not None:
            with contextlib.suppress(CallFailed):
                return self._converse(idle, (host, port), method, path, body, timeout)
            if method != "GET" and ("create" in path or "import" in path or "delete" in path):
                raise CallFailed("closed", "", True)
        return self._converse(self._connect(host, port), (host, port), method, path, body, timeout)

    def open(self, host: str, port: int, path: str, *, accept: str = "", timeout: float | None) -> Reader:
        connection = self._connect(host, port)
        try:
            response = self._respond(connection, "GET", path, None, timeout)
            return Reader(connection, response)
        except BaseException:
            connection.close()
            raise

    def begin(self, done: Callable[[Any], object], *arguments: Any, **options: Any) -> Pending:
        return _in_thread(done, lambda: self.call(*arguments, **options))

    def begin_open(self, done: Callable[[Any], object], *arguments: Any, **options: Any) -> Pending:
        return _in_thread(done, lambda: self.open(*arguments, **options))

    def _take_idle(self, owner: tuple[str, int]) -> http.client.HTTPSConnection | None:
        for _ in range(len(self._idle)):
            try:
                other, connection = self._idle.pop()
            except IndexError:
                return None
            if other != owner:
                self._idle.appendleft((other, connection))
                continue
            poll = select.poll()
            poll.register(connection.sock, select.POLLIN)
            if not poll.poll(0):
                return connection
            connection.close()
        return None

    def _connect(self, host: str, port: int) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(host, port, timeout=self._connect_timeout, context=self._tls.context)
        try:
            connection.connect()
        except OSError as error:
            connection.close()
            raise _failed(error, sent=False) from error
        return connection

    def _respond(
        self, connection: http.client.HTTPSConnection, method: str, path: str, body: bytes | None, timeout: float | None
    ) -> http.client.HTTPResponse:
        try:
            connection.sock.settimeout(timeout)
            connection.request(method, path, body, {} if body is None else {"Content-Type": "application/json"})
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            reason: Exception = error
            if isinstance(error, ConnectionError | ssl.SSLEOFError) and connection.sock is not None:
                try:
                    connection.sock.recv(1)
                except ssl.SSLError as alert:
                    reason = alert
                except OSError:
                    pass
            connection.close()
            raise _failed(reason, sent=True) from error

    def _converse(
        self,
        connection: http.client.HTTPSConnection,
        owner: tuple[str, int],
        method: str,
        path: str,
        body: bytes | None,
        timeout: float | None,
    ) -> tuple[int, str, bytes]:
        try:
            response = self._respond(connection, method, path, body, timeout)
            data = response.read()
        except CallFailed:
            raise
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise _failed(error, sent=True) from error
        except BaseException:
            connection.close()
            raise
        if response.will_close:
            connection.close()
        else:
            self._idle.append((owner, connection))
        return response.status, response.headers.get("Content-Type", ""), data


def _in_thread(done: Callable[[Any], object], work: Callable[[], object]) -> Pending:
    pending = Pending()

    def run() -> None:
        try:
            outcome: object = work()
        except CallFailed as failure:
            outcome = failure
        if not pending.cancelled:
            done(outcome)

    threading.Thread(target=run, daemon=True).start()
    return pending


def _failed(error: Exception, *, sent: bool) -> CallFailed:
    if isinstance(error, ssl.SSLCertVerificationError):
        kind = {62: "name", 64: "name", 10: "expired", 9: "not_yet_valid"}.get(error.verify_code, "untrusted")
        return CallFailed(kind, error.verify_message, False)
    if isinstance(error, ssl.SSLError) and error.reason and not isinstance(error, ssl.SSLEOFError):
        if "_ALERT_" in error.reason:
            return CallFailed("alert", error.reason.partition("_ALERT_")[2].replace("_", " ").lower(), False)
        if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return CallFailed("no_tls", "", False)
        return CallFailed("tls", error.reason.replace("_", " ").lower(), sent)
    if isinstance(error, ConnectionRefusedError):
        return CallFailed("refused", "", False)
    if isinstance(error, TimeoutError):
        return CallFailed("timeout" if sent else "connect_timeout", "", sent)
    if isinstance(error, ConnectionError | ssl.SSLEOFError | http.client.IncompleteRead):
        return CallFailed("closed", "", sent)
    if isinstance(error, http.client.HTTPException):
        return CallFailed("protocol", type(error).__name__, sent)
    return CallFailed("connect", getattr(error, "strerror", None) or str(error), sent)
