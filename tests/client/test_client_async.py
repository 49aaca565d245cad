"""The client for asyncio, against a real server."""

import asyncio
import base64
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager
from inspect import signature
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from keswick.client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    DataKey,
    DecryptionFailed,
    KeyExists,
    KeyNotFound,
    NotAllowed,
    ServerNotTrusted,
)
from keswick.identity import APIKey
from support.fake_server import fake_server
from support.server import RunningServer, start_server
from support.sockets import free_port

Test: TypeAlias = Callable[[AsyncClient], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server")) as running:
        with running.client() as client:
            client.create_key("k")
        yield running


@asynccontextmanager
async def client_of(server: RunningServer, api_key: str = "", **options: Any) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        server.endpoint, api_key=api_key or server.api_key, ca_file=server.ca_file, **options
    ) as client:
        yield client


def test_it_has_the_calls_of_the_client_that_waits() -> None:
    def calls(kind: type) -> dict[str, str]:
        public = {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}
        return {
            name: str(signature(call).replace(return_annotation=None))
            for name, call in public.items()
            if callable(call)
        }

    assert calls(AsyncClient) == calls(Client)


def test_every_call(server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(server) as client:
            await client.create_key("made")
            with pytest.raises(KeyExists):
                await client.create_key("made")
            await client.import_key("imported", bytes(32), "ChaCha20")
            assert [name async for name in client.list_keys()] == ["imported", "k", "made"]
            assert (await client.describe_key("imported")).algorithm == "ChaCha20"
            plaintext, ciphertext = await client.generate_key("k", b"context")
            assert await client.decrypt("k", ciphertext, b"context") == plaintext
            with pytest.raises(DecryptionFailed):
                await client.decrypt("k", ciphertext)
            assert await client.decrypt("k", await client.encrypt("k", b"text")) == b"text"
            assert len(await client.hmac("k", b"message")) == 32
            for name in ("made", "imported"):
                await client.delete_key(name)
            with pytest.raises(KeyNotFound):
                await client.describe_key("made")
            me, policy = await client.describe_self()
            assert (me.is_admin, policy) == (True, None)
            assert [name async for name in client.list_identities()] == [me.identity]
            assert (await client.describe_identity(me.identity)).is_admin
            assert [name async for name in client.list_policies()] == []
            await client.ready()
            assert (await client.version()).version
            assert (await client.status()).uptime >= 0
            assert (await client.metrics()).total("kes_http_request_success") > 0
            assert len(await client.apis()) > 20

    asyncio.run(main())


@pytest.mark.parametrize("http2", [True, False])
def test_a_thousand_calls_at_once(server: RunningServer, http2: bool) -> None:
    async def main() -> None:
        async with client_of(server, http2=http2) as client:
            keys = await asyncio.gather(*(client.generate_key("k") for _ in range(1000)))
            assert len({key.plaintext for key in keys}) == 1000
            if http2:
                metrics = await client.metrics()
                assert metrics.total("kes_connections") < 10

    asyncio.run(main())


def test_one_client_in_several_loops(server: RunningServer) -> None:
    client = AsyncClient(server.endpoint, api_key=server.api_key, ca_file=server.ca_file)
    for _ in range(3):
        asyncio.run(client.ready())
    asyncio.run(client.close())


def test_a_refused_client(server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(server, APIKey.generate().text) as stranger:
            with pytest.raises(NotAllowed):
                await stranger.status()
            with pytest.raises(NotAllowed):
                await anext(stranger.audit_log())

    asyncio.run(main())


def test_a_server_that_is_not_trusted(server: RunningServer, tmp_path: Path) -> None:
    other = tmp_path / "other.crt"
    with fake_server(tmp_path) as fake:
        other.write_bytes(fake.ca_file.read_bytes())

    async def main() -> None:
        async with AsyncClient(server.endpoint, ca_file=other) as client:
            with pytest.raises(ServerNotTrusted, match="set KES_CA_FILE"):
                await client.ready()

    asyncio.run(main())


def test_the_second_server_is_asked_after_a_pause_too(server: RunningServer) -> None:
    async def main() -> None:
        absent = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        async with AsyncClient([*absent, server.endpoint], api_key=server.api_key, ca_file=server.ca_file) as client:
            await client.ready()
            assert client.endpoints[0] == server.endpoint
        async with AsyncClient(absent, verify=False, retries=1) as client:
            with pytest.raises(ConnectionFailed, match="no server answers"):
                await client.ready()

    asyncio.run(main())


# --- cancellation ---


def test_a_cancelled_task_ends_its_call(server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(server, timeout=None) as client:
            await client.ready()
            server.process.send_signal(signal.SIGSTOP)
            try:
                waiting = [asyncio.create_task(client.ready()) for _ in range(10)]
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await waiting[0]
                for task in waiting[1:]:
                    task.cancel()
                outcomes = await asyncio.gather(*waiting, return_exceptions=True)
                assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            finally:
                server.process.send_signal(signal.SIGCONT)
            await client.ready()

    asyncio.run(main())


def test_a_pause_before_another_round_can_be_cancelled() -> None:
    async def main() -> None:
        async with AsyncClient(f"127.0.0.1:{free_port()}", verify=False, retries=1_000_000) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await client.ready()

    asyncio.run(main())


# --- log streams ---


def test_events_come_as_they_happen(server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(server) as client, aclosing(client.audit_log()) as events:
            assert (await anext(events)).path == "/v1/log/audit"  # its own request
            waiting = asyncio.create_task(anext(events))
            await client.ready()
            event = await waiting
            assert (event.path, event.status) == ("/v1/ready", 200)

    asyncio.run(main())


def test_waiting_for_an_event_can_be_cancelled(server: RunningServer) -> None:
    async def main() -> None:
        async with client_of(server) as client:
            events = client.error_log()

            async def follow() -> None:
                async for _ in events:
                    pass

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(follow(), 0.2)
            with pytest.raises(StopAsyncIteration):
                await anext(events)
            await client.ready()

    asyncio.run(main())


def test_a_stream_ends_when_the_server_ends(tmp_path: Path) -> None:
    async def main(server: RunningServer) -> None:
        async with client_of(server) as client:
            paths = []
            async for event in client.audit_log():
                paths.append(event.path)
                server.process.send_signal(signal.SIGTERM)
            assert paths == ["/v1/log/audit"]

    with start_server(tmp_path) as server:
        asyncio.run(main(server))


# --- secrets ---


def test_the_debug_log_of_asyncio_shows_no_plaintext(server: RunningServer, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        asyncio.get_running_loop().slow_callback_duration = 0  # so that every one is written down
        async with client_of(server) as client:
            sealed = await client.encrypt("k", secret)
            await client.decrypt("k", sealed)
            keys.append(await client.generate_key("k"))

    secret, keys = b"attack at dawn", list[DataKey]()
    with caplog.at_level("DEBUG"):
        asyncio.run(main(), debug=True)
    assert "settle" in caplog.text
    for plaintext in (secret, keys[0].plaintext):
        assert base64.b64encode(plaintext).decode()[-6:] not in caplog.text
