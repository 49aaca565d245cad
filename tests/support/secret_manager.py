"""Google's Secret Manager as it is over gRPC, written from its public description, on a free port of 127.0.0.1.

with SecretManager(folder) as google, google.trusted():
    store = open({"endpoint": google.endpoint, "project_id": "any", **google.credentials})
    with google.fault("denied"):
        ...

It listens with TLS, by an authority of its own, and answers HTTP/1.1, too, as the front of the real one does: with 404.
It is as strict as the real one: with names, paths, and the signed token that each call has to carry. Each project is
empty at first. A page of a list is short, so that tests need not make 25,000 secrets.
"""

import asyncio
import os
import re
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest.mock import patch

import grpc
from google.auth import exceptions as auth_errors
from google.auth import jwt
from google.cloud import secretmanager_v1 as types
from google.protobuf.empty_pb2 import Empty

from support.certificates import make

PAGE = 100
PROJECT_NUMBER = 113579024680
"""Names in answers have the project's number, whatever name of it was asked with."""

ANSWERS = {
    "denied": (grpc.StatusCode.PERMISSION_DENIED, "Permission denied on resource (or it may not exist)."),
    "throttled": (grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota exceeded for quota metric 'Access requests'."),
    "troubled": (grpc.StatusCode.INTERNAL, "Internal error encountered."),
    "away": (grpc.StatusCode.UNAVAILABLE, "The service is currently unavailable."),
    "aborted": (grpc.StatusCode.ABORTED, "The secret was changed concurrently."),
    "expired": (grpc.StatusCode.UNAUTHENTICATED, "Request had invalid authentication credentials."),
}
"""What is answered at once, by the name of the fault."""

FAULTS = (*ANSWERS, "refused", "lost", "hanging", "cut", "garbage")
"""As those of `fault_proxy`. An empty answer, or one of other fields, cannot be told from a right one here."""

_Method = Callable[[Any, "grpc.ServicerContext"], Any]


class SecretManager:
    def __init__(self, folder: Path) -> None:
        """The folder is for certificates."""
        self.active: str | None = None
        self.calls: list[tuple[str, Any]] = []
        """Method and request of every call that came, and had a valid token."""
        self.tokens: list[dict[str, Any]] = []
        """What their tokens said."""
        self.access_tokens: set[str] = set()
        """Those that are as good as what the account signs."""
        self.instead: dict[str, Any] = {}
        """What methods answer with, by their names, instead of what is right."""
        self.before: Callable[[str], None] = lambda method: None
        """Called before each is carried out."""
        self._projects: dict[str, dict[str, list[bytes | None]]] = {}
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._account = make("rsa2048", name="kes")
        authority = make("p256", name="authority", ca=True)
        self.ca_file, _ = authority.write(folder, "google-ca")
        server = make("p256", issuer=authority, sans=["localhost", "127.0.0.1"], eku=["server"])
        self._grpc = grpc.server(ThreadPoolExecutor(64))
        self._grpc.add_generic_rpc_handlers((self._methods(),))
        self.front = Front(*server.write(folder, "google"), self._grpc.add_insecure_port("127.0.0.1:0"))
        self.endpoint = f"127.0.0.1:{self.front.port}"
        self.credentials = {
            "credentials.client_email": "kes@my-project.iam.gserviceaccount.com",
            "credentials.client_id": "113579024680",
            "credentials.private_key_id": "the-key",
            "credentials.private_key": self._account.key_pem.decode().replace("\n", "\\n"),
        }
        """Of the one account that there is."""

    def forget(self) -> None:
        """All secrets, calls, and what a test has set."""
        self._projects.clear()
        self.calls.clear()
        self.tokens.clear()
        self.access_tokens.clear()
        self.instead.clear()
        self.before = lambda method: None
        self.active = None

    def __enter__(self) -> "SecretManager":
        self._grpc.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._released.set()
        self.front.close()
        self._grpc.stop(None).wait(10)

    @contextmanager
    def trusted(self) -> Iterator[None]:
        """Stores that are opened meanwhile trust its certificate."""
        with patch.dict(os.environ, SSL_CERT_FILE=str(self.ca_file)):
            for name in ("SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
                os.environ.pop(name, None)
            yield

    @contextmanager
    def fault(self, name: str) -> Iterator[None]:
        assert name in FAULTS, name
        self._released.clear()
        self.active = name
        if name == "refused":
            self.front.stop()
        self.front.cutting = name == "cut"
        try:
            yield
        finally:
            self.front.cutting = False
            if name == "refused":
                self.front.start()
            self.active = None
            self._released.set()

    def versions(self, project: str, name: str) -> list[bytes | None]:
        """Of a secret, to look at and to change; None is one that was destroyed."""
        return self._projects[project][name]

    def add(self, project: str, name: str, *versions: bytes) -> None:
        self._projects.setdefault(project, {})[name] = list(versions)

    # --- the methods ---

    def _methods(self) -> Any:
        methods: dict[str, tuple[_Method, Any, Any]] = {
            "CreateSecret": (self._create_secret, types.CreateSecretRequest, types.Secret),
            "AddSecretVersion": (self._add_secret_version, types.AddSecretVersionRequest, types.SecretVersion),
            "AccessSecretVersion": (
                self._access_secret_version,
                types.AccessSecretVersionRequest,
                types.AccessSecretVersionResponse,
            ),
            "DeleteSecret": (self._delete_secret, types.DeleteSecretRequest, None),
            "ListSecrets": (self._list_secrets, types.ListSecretsRequest, types.ListSecretsResponse),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._served(name, method),
                asked.deserialize,
                lambda answer, answered=answered: _bytes(answer, answered),
            )
            for name, (method, asked, answered) in methods.items()
        }
        return grpc.method_handlers_generic_handler("google.cloud.secretmanager.v1.SecretManagerService", handlers)

    def _served(self, name: str, method: _Method) -> _Method:
        def serve(request: Any, context: "grpc.ServicerContext") -> Any:
            self._check_token(context)
            self._check_routing(name, request, context)
            self.calls.append((name, request))
            if answer := ANSWERS.get(self.active or ""):
                context.abort(*answer)
            if self.active == "hanging":
                self._released.wait(60)
                context.abort(grpc.StatusCode.CANCELLED, "it is over")
            if self.active in ("garbage", "cut"):
                return b"\xff\xff<html>"
            self.before(name)
            try:
                with self._lock:
                    return self.instead.get(name) or method(request, context)
            finally:
                if self.active == "lost":
                    self.front.cut()

        return serve

    def check_token(self, authorization: str) -> None:
        """Raises ValueError for a header that shows no right to call."""
        bearer = authorization.removeprefix("Bearer ")
        if bearer in self.access_tokens:
            return
        try:
            token = dict(jwt.decode(bearer, {"the-key": self._account.cert_pem.decode()}))
        except auth_errors.GoogleAuthError as error:
            raise ValueError("no token") from error
        for_us = token.get("aud") == "https://secretmanager.googleapis.com/" or token.get("scope")
        if not for_us or {token["iss"], token["sub"]} != {self.credentials["credentials.client_email"]}:
            raise ValueError("the token of another, or for another")
        self.tokens.append(token)

    def _check_token(self, context: "grpc.ServicerContext") -> None:
        try:
            self.check_token(dict(context.invocation_metadata()).get("authorization", ""))
        except ValueError:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Request had invalid authentication credentials.")

    def _check_routing(self, method: str, request: Any, context: "grpc.ServicerContext") -> None:
        field = "name" if method in ("AccessSecretVersion", "DeleteSecret") else "parent"
        routing = dict(context.invocation_metadata()).get("x-goog-request-params")
        if routing != f"{field}={getattr(request, field)}":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The routing header does not fit.")

    def _create_secret(self, request: Any, context: "grpc.ServicerContext") -> Any:
        project = self._project(request.parent, context)
        if not re.fullmatch("[0-9A-Za-z_-]{1,255}", request.secret_id):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The secret_id is malformed.")
        if "automatic" not in request.secret.replication:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The replication policy has to be set.")
        if request.secret_id in project:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, f"Secret [{request.secret_id}] already exists.")
        project[request.secret_id] = []
        return types.Secret(name=f"projects/{PROJECT_NUMBER}/secrets/{request.secret_id}")

    def _add_secret_version(self, request: Any, context: "grpc.ServicerContext") -> Any:
        name, versions = self._secret(request.parent, context)
        if not 0 < len(request.payload.data) <= 1 << 16:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The payload has to have 1 to 65536 bytes.")
        versions.append(request.payload.data)
        return types.SecretVersion(name=f"{name}/versions/{len(versions)}", state="ENABLED")

    def _access_secret_version(self, request: Any, context: "grpc.ServicerContext") -> Any:
        path, _, number = request.name.rpartition("/versions/")
        name, versions = self._secret(path, context)
        if not number.isdecimal() or not 0 < int(number) <= len(versions):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Secret Version [{request.name}] not found.")
        data = versions[int(number) - 1]
        if data is None:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"[{request.name}] is in DESTROYED state.")
        return types.AccessSecretVersionResponse(name=f"{name}/versions/{number}", payload={"data": data})

    def _delete_secret(self, request: Any, context: "grpc.ServicerContext") -> Any:
        name, _ = self._secret(request.name, context)
        del self._project(request.name.rpartition("/secrets/")[0], context)[name.rpartition("/")[2]]
        return Empty()

    def _list_secrets(self, request: Any, context: "grpc.ServicerContext") -> Any:
        project = self._project(request.parent, context)
        begin = int(request.page_token or 0)
        end = begin + min(request.page_size or PAGE, PAGE)
        return types.ListSecretsResponse(
            secrets=[{"name": f"projects/{PROJECT_NUMBER}/secrets/{name}"} for name in sorted(project)[begin:end]],
            next_page_token=str(end) if end < len(project) else "",
            total_size=len(project),
        )

    def _project(self, path: str, context: "grpc.ServicerContext") -> dict[str, list[bytes | None]]:
        if not re.fullmatch("projects/[^/]+", path):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"[{path}] is no project.")
        return self._projects.setdefault(path.removeprefix("projects/"), {})

    def _secret(self, path: str, context: "grpc.ServicerContext") -> tuple[str, list[bytes | None]]:
        project, _, name = path.rpartition("/secrets/")
        found = self._project(project, context).get(name)
        if found is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Secret [{path}] not found.")
            raise AssertionError("abort raises")
        return f"projects/{PROJECT_NUMBER}/secrets/{name}", found


def _bytes(answer: Any, kind: Any) -> bytes:
    if isinstance(answer, bytes):
        return answer
    return bytes(kind.serialize(answer) if kind else answer.SerializeToString())


class Front:
    """TLS before a port that speaks HTTP/2 and, if `http` is given, one that speaks HTTP/1.1."""

    def __init__(self, cert: Path, key: Path, http2: int, http: int | None = None) -> None:
        self.port = 0
        self.cutting = False
        """Whether connections end in the middle of an answer."""
        self.connections = 0
        """How many were made."""
        self._http2, self._http = http2, http
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(cert, key)
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    def start(self) -> None:
        async def start() -> asyncio.Server:
            return await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._context, backlog=128)

        self._server = self._run(start())
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        """Nobody listens, and connections end."""

        async def stop() -> None:
            self._server.close()
            await self._cut()

        self._run(stop())

    def cut(self) -> None:
        self._run(self._cut())

    def close(self) -> None:
        self.stop()
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                tls = writer.get_extra_info("ssl_object")
                port = self._http2 if tls.selected_alpn_protocol() == "h2" else self._http
                if port is None:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    await writer.drain()
                    writer.close()
                    return
                behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", port)
                there = asyncio.create_task(self._pass_on(reader, behind_writer))
                await self._pass_on(behind_reader, writer)
                await there
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                if self.cutting and writer in self._open:
                    writer.write(data[: len(data) // 2])
                    await writer.drain()
                    break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
