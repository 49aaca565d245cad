"""The client for asyncio."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, Self, TypeVar

from keswick._native import CallFailed, Pending, Reader
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
P = ParamSpec("P")


class _Abandoned(Exception):
    """Ends a thread whose result nobody waits for."""


class AsyncClient(BaseClient):
    """As `Client`, for asyncio: the same calls, to be awaited; lists and logs are asynchronous iterators.

    Many calls at once share one connection per server. Cancelling a task ends its call.

    >>> async def main():
    ...     async with AsyncClient(endpoint, api_key=api_key, ca_file="server.crt") as client:
    ...         keys = await asyncio.gather(*(client.generate_key("my-key") for _ in range(10)))
    ...         names = [name async for name in client.list_keys("my-")]
    ...     return len(keys), names
    >>> asyncio.run(main())
    (10, ['my-key'])
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connections. The client can be used again."""
        self._http.close()

    # --- keys ---

    async def create_key(self, name: str) -> None:
        await self._do(calls.create_key(name))

    async def import_key(self, name: str, key: bytes, cipher: str = "AES256") -> None:
        await self._do(calls.import_key(name, key, cipher))

    async def describe_key(self, name: str) -> KeyInfo:
        return await self._do(calls.describe_key(name))

    def list_keys(self, prefix: str = "") -> AsyncIterator[str]:
        return self._names(calls.list_keys(prefix))

    async def delete_key(self, name: str) -> None:
        await self._do(calls.delete_key(name))

    async def encrypt(self, name: str, plaintext: bytes, context: bytes = b"") -> bytes:
        return await self._do(calls.encrypt(name, plaintext, context))

    async def decrypt(self, name: str, ciphertext: bytes, context: bytes = b"") -> bytes:
        return await self._do(calls.decrypt(name, ciphertext, context))

    async def generate_key(self, name: str, context: bytes = b"") -> DataKey:
        return await self._do(calls.generate_key(name, context))

    async def hmac(self, name: str, message: bytes) -> bytes:
        return await self._do(calls.hmac(name, message))

    # --- files, in a thread ---

    async def seal(
        self,
        source: str | Path,
        target: str | Path | None = None,
        *,
        key: str,
        context: bytes = b"",
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        overwrite: bool = False,
    ) -> Path:
        return await self._in_thread(
            lambda sealing: sealing.seal(
                source, target, key=key, context=context, chunk_size=chunk_size, overwrite=overwrite
            ),
            to_the_end=True,
        )

    async def unseal(
        self,
        source: str | Path,
        target: str | Path | None = None,
        *,
        context: bytes = b"",
        overwrite: bool = False,
    ) -> Path:
        return await self._in_thread(
            lambda sealing: sealing.unseal(source, target, context=context, overwrite=overwrite), to_the_end=True
        )

    async def seal_stream(
        self,
        reader: BinaryReader,
        writer: BinaryWriter,
        *,
        key: str,
        context: bytes = b"",
        chunk_size: int = DEFAULT_CHUNK_SIZE,
    ) -> None:
        """Both are used in a thread, and block it as they like."""
        await self._in_thread(
            lambda sealing: sealing.seal_stream(reader, writer, key=key, context=context, chunk_size=chunk_size)
        )

    async def unseal_stream(self, reader: BinaryReader, writer: BinaryWriter, *, context: bytes = b"") -> None:
        """Both are used in a thread, and block it as they like."""
        await self._in_thread(lambda sealing: sealing.unseal_stream(reader, writer, context=context))

    async def _in_thread(self, work: Callable[[Sealing], Result], *, to_the_end: bool = False) -> Result:
        """Do what blocks in a thread, whose calls of the server are carried out here.

        When this is cancelled, the thread ends before its next piece. `to_the_end`: wait for that, so that nothing
        appears afterwards.
        """
        loop = asyncio.get_running_loop()
        stopped = threading.Event()
        asked: list[Future[Any]] = []

        def check() -> None:
            if stopped.is_set():
                raise _Abandoned

        def ask(call: Coroutine[Any, Any, Answer]) -> Answer:
            future = asyncio.run_coroutine_threadsafe(call, loop)
            asked.append(future)
            return future.result()

        sealing = Sealing(
            lambda name, context: ask(self.generate_key(name, context)),
            lambda name, ciphertext, context: ask(self.decrypt(name, ciphertext, context)),
            check,
        )
        done = loop.run_in_executor(None, work, sealing)
        done.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # perhaps nobody else asks for it
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            stopped.set()
            for call in asked:
                call.cancel()
            if to_the_end:
                await asyncio.wait([done])
            raise

    # --- policies and identities ---

    async def describe_policy(self, name: str) -> PolicyInfo:
        return await self._do(calls.describe_policy(name))

    async def read_policy(self, name: str) -> Policy:
        return await self._do(calls.read_policy(name))

    def list_policies(self, prefix: str = "") -> AsyncIterator[str]:
        return self._names(calls.list_policies(prefix))

    async def describe_identity(self, identity: str) -> IdentityInfo:
        return await self._do(calls.describe_identity(identity))

    async def describe_self(self) -> tuple[IdentityInfo, Policy | None]:
        return await self._do(calls.describe_self())

    def list_identities(self, prefix: str = "") -> AsyncIterator[str]:
        return self._names(calls.list_identities(prefix))

    async def list_assignments(self, prefix: str = "") -> AsyncIterator[tuple[str, str]]:
        async for page in self._pages(calls.list_identities(prefix)):
            for identity in page.names:
                policy = page.policies.get(identity)
                if policy is None:
                    with suppress(IdentityNotFound):
                        policy = (await self.describe_identity(identity)).policy
                if policy:
                    yield identity, policy

    # --- policies and identities at run time ---

    async def write_policy(
        self, name: str, allow: Iterable[str] = (), deny: Iterable[str] = (), as_paths: bool = False
    ) -> None:
        await self._do(calls.write_policy(name, allow, deny, as_paths))

    async def delete_policy(self, name: str) -> None:
        await self._do(calls.delete_policy(name))

    async def assign_policy(self, name: str, identity: str) -> None:
        await self._do(calls.assign_policy(name, identity))

    async def forget_identity(self, identity: str) -> None:
        await self._do(calls.forget_identity(identity))

    # --- the server ---

    async def version(self) -> Version:
        return await self._do(calls.version())

    async def status(self) -> Status:
        return await self._do(calls.status())

    async def ready(self) -> None:
        await self._do(calls.ready())

    async def metrics(self) -> Metrics:
        return await self._do(calls.metrics())

    async def apis(self) -> tuple[API, ...]:
        return await self._do(calls.apis())

    # --- log streams ---

    def audit_log(self, *, trace: bool = False) -> AsyncGenerator[AuditEvent, None]:
        return self._events(calls.audit_log(trace))

    def error_log(self, *, trace: bool = False) -> AsyncGenerator[ErrorEvent, None]:
        return self._events(calls.error_log(trace))

    # --- one call ---

    async def _do(self, call: calls.Call[Result]) -> Result:
        async def ask(endpoint: Endpoint) -> Reply:
            host, port = endpoint
            answer = await _end_of(
                self._http.begin, host, port, call.method, call.path, call.body, timeout=self._timeout
            )
            return Reply(*answer)

        try:
            return call.read(checked(await self._from_first(ask, call.repeatable)))
        except APIError as refusal:
            instead = call.after(refusal)
            if isinstance(instead, APIError):
                raise instead from None
        return await self._do(instead)

    async def _pages(self, call: calls.Call[calls.Page] | None) -> AsyncIterator[calls.Page]:
        while call is not None:
            page = await self._do(call)
            yield page
            call = page.following

    async def _names(self, call: calls.Call[calls.Page]) -> AsyncIterator[str]:
        async for page in self._pages(call):
            for name in page.names:
                yield name

    async def _events(self, stream: calls.Stream[Event]) -> AsyncGenerator[Event, None]:
        endpoint, reader, read = await self._open(stream)
        lines = Lines()
        try:
            while True:
                piece = await _end_of(reader.begin_read, timeout=None)
                for line in lines.feed(piece):
                    yield read(line)
                if not piece:
                    return
        except CallFailed as failure:
            raise explained(endpoint, failure) from None
        finally:
            reader.close()

    async def _open(self, stream: calls.Stream[Event]) -> "_Opened[Event]":
        async def ask(endpoint: Endpoint) -> "_Opened[Event] | Reply":
            reader = await _end_of(self._http.begin_open, *endpoint, stream.path, timeout=None)
            if reader.status == 200:
                return _Opened(endpoint, reader, stream.reading(reader.header(TIME_UNIT)))
            body = b""
            try:
                for seconds in self._time_left():
                    piece = await _end_of(reader.begin_read, timeout=seconds)
                    body += piece
                    if not piece or len(body) > MAX_REFUSAL:
                        break
                return Reply(reader.status, reader.header("content-type"), body)
            finally:
                reader.close()

        opened: _Opened[Event] | Reply = await self._from_first(ask, repeatable=True)
        if isinstance(opened, _Opened):
            return opened
        refusal = refused(opened)
        if isinstance(refusal, NotServed) and stream.otherwise is not None:
            return await self._open(stream.otherwise)
        raise refusal

    async def _from_first(self, ask: Callable[[Endpoint], Awaitable[Answer]], repeatable: bool) -> Answer:
        """What the first endpoint that answers says."""
        plan: Plan[Answer] = self._servers.plan(repeatable)
        step = next(plan)
        while True:
            outcome: Answer | CallFailed | None = None
            if isinstance(step, Endpoint):
                try:
                    outcome = await ask(step)
                except CallFailed as failure:
                    outcome = failure
            else:
                await asyncio.sleep(step)
            try:
                step = plan.send(outcome)
            except StopIteration as end:
                answer: Answer = end.value
                return answer


class _Opened(NamedTuple, Generic[Event]):
    endpoint: Endpoint
    reader: Reader
    read: Callable[[bytes], Event]


async def _end_of(
    begin: Callable[Concatenate[Callable[[Answer | CallFailed], object], P], Pending], *args: P.args, **kwargs: P.kwargs
) -> Answer:
    """Begin a native call and wait for its end. Cancelling the task ends the call. Raises CallFailed."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    outcomes: list[Answer | CallFailed] = []
    """Neither an argument nor the result of a future, which asyncio's debug mode would write into its log."""

    def settle() -> None:
        if not ended.done():
            ended.set_result(None)
        elif isinstance(outcomes[0], Reader):  # it came when the task had just been cancelled
            outcomes[0].close()

    def done(outcome: Answer | CallFailed) -> None:
        """On a native thread."""
        outcomes.append(outcome)
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            loop.call_soon_threadsafe(settle)

    pending = begin(done, *args, **kwargs)
    try:
        await ended
    except BaseException:
        pending.cancel()
        raise
    outcome = outcomes.pop()
    if isinstance(outcome, CallFailed):
        raise outcome
    return outcome
