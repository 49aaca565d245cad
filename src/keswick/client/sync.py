"""The client whose calls wait for their answers."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Generic, Self, TypeVar

from keswick._native import CallFailed, Reader
from keswick.client import calls
from keswick.client.base import BaseClient
from keswick.client.endpoint import Endpoint
from keswick.client.envelope import DEFAULT_CHUNK_SIZE
from keswick.client.errors import APIError, IdentityNotFound, NotServed
from keswick.client.failover import Plan, explained
from keswick.client.metrics import Metrics
from keswick.client.replies import MAX_REFUSAL, TIME_UNIT, Lines, Reply, checked, refused
from keswick.client.results import (
    API,
    AuditEvent,
    DataKey,
    ErrorEvent,
    IdentityInfo,
    KeyInfo,
    Policy,
    PolicyInfo,
    Status,
    Version,
)
from keswick.client.sealing import BinaryReader, BinaryWriter, Sealing

Result = TypeVar("Result")
Answer = TypeVar("Answer")
Event = TypeVar("Event")


class Client(BaseClient):
    """Calls the servers at `endpoints`, which share one key store: a call goes to the first that answers, and later
    calls begin with that one.

    The client shows itself with an API key, or with the PEM files `cert` and `key`; `password` opens an encrypted key
    (a function is called only if it is). `ca_file`: a PEM file, or a folder of them, trusted instead of the system's
    authorities. `verify=False` takes any server for the right one. `timeout`: seconds that a server has for one answer,
    None for ever; `connect_timeout`: for one connection. `retries`: how many more rounds over the endpoints there are,
    with growing pauses, when none answers and nothing can be done twice.

    A client may be used from several threads; it keeps idle connections for the next call. Raises ValueError or OSError
    when a credential or file cannot be used. Every call raises APIError when the server refuses it, and
    ConnectionFailed when no server answers.

    >>> with Client(endpoint, api_key=api_key, ca_file="server.crt") as client:
    ...     client.create_key("my-first-key")
    ...     data_key = client.generate_key("my-first-key")
    >>> len(data_key.plaintext)
    32
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connections. The client can be used again."""
        self._http.close()

    # --- keys ---

    def create_key(self, name: str) -> None:
        """Make a new key; it never leaves the server. Raises KeyExists.

        >>> client.create_key("invoices")
        """
        self._do(calls.create_key(name))

    def import_key(self, name: str, key: bytes, cipher: str = "AES256") -> None:
        """Take in a key of 32 bytes. `cipher`: `AES256` or `ChaCha20`. Raises KeyExists.

        >>> client.import_key("imported", secrets.token_bytes(32), cipher="ChaCha20")
        """
        self._do(calls.import_key(name, key, cipher))

    def describe_key(self, name: str) -> KeyInfo:
        """What is known about a key. Raises KeyNotFound.

        >>> client.describe_key("my-key").algorithm
        'AES256'
        """
        return self._do(calls.describe_key(name))

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        """All names that begin with `prefix`, sorted, page by page as they are asked for.

        >>> list(client.list_keys("my-"))
        ['my-key']
        """
        return self._names(calls.list_keys(prefix))

    def delete_key(self, name: str) -> None:
        """Delete a key, at once and for ever: what it sealed is lost. Raises KeyNotFound.

        >>> client.create_key("short-lived")
        >>> client.delete_key("short-lived")
        """
        self._do(calls.delete_key(name))

    def encrypt(self, name: str, plaintext: bytes, context: bytes = b"") -> bytes:
        """The ciphertext. `context` is authenticated with it, and has to be given again to decrypt.

        >>> sealed = client.encrypt("my-key", b"attack at dawn", context=b"message 17")
        >>> client.decrypt("my-key", sealed, context=b"message 17")
        b'attack at dawn'
        """
        return self._do(calls.encrypt(name, plaintext, context))

    def decrypt(self, name: str, ciphertext: bytes, context: bytes = b"") -> bytes:
        """The plaintext. Raises DecryptionFailed unless ciphertext, context and key belong together."""
        return self._do(calls.decrypt(name, ciphertext, context))

    def generate_key(self, name: str, context: bytes = b"") -> DataKey:
        """A new data key of 32 bytes, as it is used, and sealed as it is stored beside what it encrypted.

        >>> plaintext, ciphertext = client.generate_key("my-key")
        >>> client.decrypt("my-key", ciphertext) == plaintext
        True
        """
        return self._do(calls.generate_key(name, context))

    def hmac(self, name: str, message: bytes) -> bytes:
        """32 bytes: the HMAC-SHA-256 of the message under the key's own HMAC key, always the same.

        >>> len(client.hmac("my-key", b"a message"))
        32
        """
        return self._do(calls.hmac(name, message))

    # --- files ---

    def seal(
        self,
        source: str | Path,
        target: str | Path | None = None,
        *,
        key: str,
        context: bytes = b"",
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        overwrite: bool = False,
    ) -> Path:
        """Seal a file of any size under a new data key, which goes with it, sealed with the server's key `key`.

        The path of the sealed file is `target`, or the source's with `.sealed` behind it; it has the source's
        permissions, as far as the umask lets it.

        The server sees nothing of the file. `context` is authenticated with it, and has to be given again to unseal.
        `chunk_size`: bytes that are sealed, and held in memory, at a time. The target appears when it is whole.
        Raises FileExistsError for a target that is there, unless `overwrite`.

        >>> client.seal("backup.tar", key="my-key").name
        'backup.tar.sealed'
        """
        return self._sealing().seal(
            source, target, key=key, context=context, chunk_size=chunk_size, overwrite=overwrite
        )

    def unseal(
        self,
        source: str | Path,
        target: str | Path | None = None,
        *,
        context: bytes = b"",
        overwrite: bool = False,
    ) -> Path:
        """Unseal a file. The path of what was in it is `target`, or the source's without `.sealed`; it is for its owner
        only.

        The target appears when all of it was found to be what was sealed, otherwise SealError says what is wrong.
        Raises FileExistsError for a target that is there, unless `overwrite`.

        >>> client.unseal("backup.tar.sealed", "restored.tar").name
        'restored.tar'
        """
        return self._sealing().unseal(source, target, context=context, overwrite=overwrite)

    def seal_stream(
        self,
        reader: BinaryReader,
        writer: BinaryWriter,
        *,
        key: str,
        context: bytes = b"",
        chunk_size: int = DEFAULT_CHUNK_SIZE,
    ) -> None:
        """As `seal`, from one binary file object, up to its end, to another."""
        self._sealing().seal_stream(reader, writer, key=key, context=context, chunk_size=chunk_size)

    def unseal_stream(self, reader: BinaryReader, writer: BinaryWriter, *, context: bytes = b"") -> None:
        """As `unseal`, from one binary file object, up to its end, to another.

        What comes out is authentic piece by piece, but that it is whole shows only at the end: if this raises, what was
        written until then must not be used.

        >>> sealed, plaintext = io.BytesIO(), io.BytesIO()
        >>> client.seal_stream(io.BytesIO(b"attack at dawn"), sealed, key="my-key")
        >>> client.unseal_stream(io.BytesIO(sealed.getvalue()), plaintext)
        >>> plaintext.getvalue()
        b'attack at dawn'
        """
        self._sealing().unseal_stream(reader, writer, context=context)

    def _sealing(self) -> Sealing:
        return Sealing(self.generate_key, self.decrypt)

    # --- policies and identities ---

    def describe_policy(self, name: str) -> PolicyInfo:
        """Who made a policy, and when. Raises PolicyNotFound."""
        return self._do(calls.describe_policy(name))

    def read_policy(self, name: str) -> Policy:
        """A policy with its rules. Raises PolicyNotFound."""
        return self._do(calls.read_policy(name))

    def list_policies(self, prefix: str = "") -> Iterator[str]:
        """As `list_keys`.

        >>> list(client.list_policies())
        []
        """
        return self._names(calls.list_policies(prefix))

    def describe_identity(self, identity: str) -> IdentityInfo:
        """What the server knows about an identity. Raises IdentityNotFound."""
        return self._do(calls.describe_identity(identity))

    def describe_self(self) -> tuple[IdentityInfo, Policy | None]:
        """Who the server takes this client for, and its policy if there is one.

        >>> me, policy = client.describe_self()
        >>> me.is_admin, policy
        (True, None)
        """
        return self._do(calls.describe_self())

    def list_identities(self, prefix: str = "") -> Iterator[str]:
        """As `list_keys`.

        >>> [client.describe_identity(identity).is_admin for identity in client.list_identities()]
        [True]
        """
        return self._names(calls.list_identities(prefix))

    def list_assignments(self, prefix: str = "") -> Iterator[tuple[str, str]]:
        """Each identity that has a policy, with the name of that. Where the server's list does not tell it, as since
        October 2023, each identity is described; those that are forgotten meanwhile are left out.

        >>> list(client.list_assignments())
        []
        """
        for page in self._pages(calls.list_identities(prefix)):
            for identity in page.names:
                policy = page.policies.get(identity)
                if policy is None:
                    with suppress(IdentityNotFound):
                        policy = self.describe_identity(identity).policy
                if policy:
                    yield identity, policy

    # --- policies and identities at run time ---

    def write_policy(
        self, name: str, allow: Iterable[str] = (), deny: Iterable[str] = (), as_paths: bool = False
    ) -> None:
        """Make a policy, or overwrite it: patterns of the paths that it allows, and of those that it denies
        nevertheless. Raises InvalidPolicy, and RunTimePoliciesOff where policies are not taken at run time.
        `as_paths`: a server that answers as in 2021 is to show it with `paths`, as the clients of that time know it.

        This and the next three change the one server that answers, which keeps it in memory until it ends: with several
        servers each needs a client of its own.

        >>> client.write_policy("app", allow=["/v1/key/generate/*"], deny=["/v1/key/generate/internal-*"])
        >>> client.read_policy("app").deny
        ('/v1/key/generate/internal-*',)
        """
        self._do(calls.write_policy(name, allow, deny, as_paths))

    def delete_policy(self, name: str) -> None:
        """Delete a policy; its identities have none then. Raises PolicyNotFound, RunTimePoliciesOff."""
        self._do(calls.delete_policy(name))

    def assign_policy(self, name: str, identity: str) -> None:
        """Let a policy apply to an identity, instead of the one that it had. Raises PolicyNotFound, IdentityIsAdmin,
        SelfAssignment, RunTimePoliciesOff.

        >>> client.write_policy("app", allow=["/v1/key/generate/app-*"])
        >>> client.assign_policy("app", "3ecfcdf38fcbe141ae26a1030f81e96b753365a46760ae6b578698a97c59fd22")
        """
        self._do(calls.assign_policy(name, identity))

    def forget_identity(self, identity: str) -> None:
        """Take its policy from an identity; one that has none stays as it is. Raises IdentityIsAdmin,
        RunTimePoliciesOff."""
        self._do(calls.forget_identity(identity))

    # --- the server ---

    def version(self) -> Version:
        """
        >>> client.version().version == keswick.__version__
        True
        """
        return self._do(calls.version())

    def status(self) -> Status:
        """How the server and its key store are.

        >>> client.status().keystore_unreachable
        False
        """
        return self._do(calls.status())

    def ready(self) -> None:
        """Raises KeyStoreUnreachable while the key store is away, KeyStoreFailed when it is not as it should be.

        >>> client.ready()
        """
        self._do(calls.ready())

    def metrics(self) -> Metrics:
        """What the server counts, scraped now.

        >>> client.metrics().total("kes_system_num_cpu") > 0
        True
        """
        return self._do(calls.metrics())

    def apis(self) -> tuple[API, ...]:
        """The APIs that the server has, with their limits.

        >>> [api.timeout for api in client.apis() if api.path == "/version"]
        [10]
        """
        return self._do(calls.apis())

    # --- log streams ---

    def audit_log(self, *, trace: bool = False) -> "LogStream[AuditEvent]":
        """The requests that the server answers from now on, one after the other, without an end unless the server ends.

        `trace`: at the path of before 2022, which old policies allow, and where the times in the lines of the server
        are in nanoseconds, not in milliseconds.

        >>> with client.audit_log() as events:
        ...     client.ready()
        ...     print(next(event.status for event in events if event.path == "/v1/ready"))
        200
        """
        return self._stream(calls.audit_log(trace))

    def error_log(self, *, trace: bool = False) -> "LogStream[ErrorEvent]":
        """What the server writes into its error log from now on. `trace`: at the path of before 2022."""
        return self._stream(calls.error_log(trace))

    # --- one call ---

    def _do(self, call: calls.Call[Result]) -> Result:
        def ask(endpoint: Endpoint) -> Reply:
            answer = self._http.call(
                endpoint.host, endpoint.port, call.method, call.path, call.body, timeout=self._timeout
            )
            return Reply(*answer)

        try:
            return call.read(checked(self._from_first(ask, call.repeatable)))
        except APIError as refusal:
            instead = call.after(refusal)
            if isinstance(instead, APIError):
                raise instead from None
        return self._do(instead)

    def _pages(self, call: calls.Call[calls.Page] | None) -> Iterator[calls.Page]:
        while call is not None:
            page = self._do(call)
            yield page
            call = page.following

    def _names(self, call: calls.Call[calls.Page]) -> Iterator[str]:
        for page in self._pages(call):
            yield from page.names

    def _stream(self, stream: calls.Stream[Event]) -> "LogStream[Event]":
        def ask(endpoint: Endpoint) -> "LogStream[Event] | Reply":
            reader = self._http.open(endpoint.host, endpoint.port, stream.path, timeout=None)
            if reader.status == 200:
                return LogStream(endpoint, reader, stream.reading(reader.header(TIME_UNIT)))
            body = b""
            try:
                for seconds in self._time_left():
                    piece = reader.read(timeout=seconds)
                    body += piece
                    if not piece or len(body) > MAX_REFUSAL:
                        break
                return Reply(reader.status, reader.header("content-type"), body)
            finally:
                reader.close()

        opened = self._from_first(ask, repeatable=True)
        if not isinstance(opened, Reply):
            return opened
        refusal = refused(opened)
        if isinstance(refusal, NotServed) and stream.otherwise is not None:
            return self._stream(stream.otherwise)
        raise refusal

    def _from_first(self, ask: Callable[[Endpoint], Answer], repeatable: bool) -> Answer:
        """What the first endpoint that answers says."""
        plan: Plan[Answer] = self._servers.plan(repeatable)
        step = next(plan)
        while True:
            outcome: Answer | CallFailed | None = None
            if isinstance(step, Endpoint):
                try:
                    outcome = ask(step)
                except CallFailed as failure:
                    outcome = failure
            else:
                time.sleep(step)
            try:
                step = plan.send(outcome)
            except StopIteration as end:
                answer: Answer = end.value
                return answer


class LogStream(Iterator[Event], Generic[Event]):
    """The events of a log, as they happen. Waiting for one takes as long as it takes; Ctrl-C and `close` end it."""

    def __init__(self, endpoint: Endpoint, reader: Reader, read: Callable[[bytes], Event]) -> None:
        self._endpoint, self._reader = endpoint, reader
        self._closed = False
        self._events = self._read(read)

    def __next__(self) -> Event:
        return next(self._events)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream, on any thread. Idempotent."""
        self._closed = True
        self._reader.close()

    def _read(self, read: Callable[[bytes], Event]) -> Iterator[Event]:
        lines = Lines()
        try:
            while not self._closed:
                piece = self._reader.read(timeout=None)
                for line in lines.feed(piece):
                    yield read(line)
                if not piece:
                    return
        except CallFailed as failure:
            if not self._closed:
                raise explained(self._endpoint, failure) from None
        finally:
            self.close()
