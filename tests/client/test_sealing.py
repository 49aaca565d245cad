"""Files and streams, sealed and unsealed with a running server."""

import asyncio
import io
import os
import resource
import signal
import stat
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from keswick.client import (
    AsyncClient,
    Client,
    DataKeyRefused,
    HeaderChanged,
    KeyNotFound,
    NotSealed,
    SealError,
    Tampered,
    Truncated,
)
from support.server import RunningServer, start_server

CONTENT = os.urandom(200_001)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server"), keys=[{"name": "my-key"}, {"name": "my-kex"}]) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with closing(server.client()) as client:
        yield client


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "backup.tar"
    path.write_bytes(CONTENT)
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- files ---


def test_a_file_there_and_back(client: Client, source: Path) -> None:
    sealed = client.seal(source, key="my-key")
    assert sealed == source.with_name("backup.tar.sealed")
    assert CONTENT[:16] not in sealed.read_bytes()
    source.unlink()
    assert client.unseal(str(sealed)) == source
    assert source.read_bytes() == CONTENT
    assert names(source.parent) == {"backup.tar", "backup.tar.sealed"}


@pytest.mark.parametrize("size", [0, 1, 1024, 2048])
def test_small_files_with_small_chunks(client: Client, tmp_path: Path, size: int) -> None:
    source, sealed, back = (tmp_path / name for name in ("source", "sealed", "back"))
    source.write_bytes(CONTENT[:size])
    assert client.seal(source, sealed, key="my-key", chunk_size=1024) == sealed
    assert client.unseal(sealed, back) == back
    assert back.read_bytes() == CONTENT[:size]


def test_permissions(client: Client, source: Path) -> None:
    """A sealed file is for whom its source was; what was in it is for its owner."""
    before = os.umask(0o022)
    try:
        source.chmod(0o755)
        sealed = client.seal(source, key="my-key")
        assert mode(sealed) == 0o644
        assert mode(client.unseal(sealed, overwrite=True)) == 0o600
        assert mode(client.seal(source, key="my-key", overwrite=True)) == 0o600
    finally:
        os.umask(before)


def test_the_context_has_to_be_given_again(client: Client, source: Path) -> None:
    sealed = client.seal(source, key="my-key", context=b"backup of Monday")
    for context in (b"", b"backup of Tuesday"):
        with pytest.raises(DataKeyRefused, match="give the context that it was sealed with"):
            client.unseal(sealed, overwrite=True, context=context)
    assert source.read_bytes() == CONTENT
    client.unseal(sealed, overwrite=True, context=b"backup of Monday")
    assert source.read_bytes() == CONTENT


def test_what_exists_is_kept(client: Client, source: Path) -> None:
    sealed = client.seal(source, key="my-key")
    before = sealed.read_bytes()
    with pytest.raises(FileExistsError):
        client.seal(source, key="my-key")
    with pytest.raises(FileExistsError):
        client.unseal(sealed)
    assert sealed.read_bytes() == before
    client.seal(source, key="my-key", overwrite=True)
    assert sealed.read_bytes() != before


def test_a_file_may_be_sealed_in_its_own_place(client: Client, source: Path) -> None:
    client.seal(source, source, key="my-key", overwrite=True)
    assert source.read_bytes() != CONTENT
    client.unseal(source, source, overwrite=True)
    assert source.read_bytes() == CONTENT


def test_a_name_without_the_suffix_needs_a_target(client: Client, source: Path) -> None:
    sealed = client.seal(source, source.with_name("sealed"), key="my-key")
    with pytest.raises(ValueError, match=r"does not end in '\.sealed': name a file"):
        client.unseal(sealed)
    with pytest.raises(ValueError, match=r"does not end in '\.sealed': name a file"):
        client.unseal(sealed.rename(source.with_name(".sealed")))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda sealed: sealed[:-1], Tampered),
        (lambda sealed: sealed[:-20_000], Tampered),
        (lambda sealed: sealed[:100], Truncated),
        (lambda sealed: sealed[: 163 + 65_536 + 16], Truncated),
        (lambda sealed: sealed + b"more", Tampered),
        (lambda sealed: sealed[:100_000] + b"\0\0\0\0" + sealed[100_004:], Tampered),
        (lambda sealed: sealed.replace(b"my-key", b"my-kez", 1), KeyNotFound),
        (lambda sealed: sealed.replace(b"my-key", b"my-kex", 1), DataKeyRefused),
        (lambda sealed: sealed[:10] + b"\0\0\x08\0" + sealed[14:], HeaderChanged),
        (lambda sealed: sealed[:30] + b"\0\0\0\0" + sealed[34:], DataKeyRefused),
        (lambda sealed: CONTENT, NotSealed),
    ],
)
def test_nothing_stays_of_a_file_that_was_changed(
    client: Client, source: Path, damage: Any, error: type[Exception]
) -> None:
    sealed = client.seal(source, key="my-key")
    sealed.write_bytes(damage(sealed.read_bytes()))
    source.unlink()
    with pytest.raises(error):
        client.unseal(sealed)
    assert names(source.parent) == {"backup.tar.sealed"}


def test_nothing_stays_when_there_is_no_such_key(client: Client, source: Path) -> None:
    with pytest.raises(KeyNotFound):
        client.seal(source, key="absent")
    assert names(source.parent) == {"backup.tar"}


def test_wrong_chunk_sizes_are_refused_before_the_server_is_asked(source: Path) -> None:
    with Client("https://127.0.0.1:1") as nobody, pytest.raises(ValueError, match="a chunk size of 0 is not between"):
        nobody.seal(source, key="my-key", chunk_size=0)


def test_the_disk_is_full(client: Client, source: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as failed:
            client.seal(source, key="my-key")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert failed.value.filename == str(source) + ".sealed"
    assert names(source.parent) == {"backup.tar"}


# --- streams ---


class Dribble(io.RawIOBase):
    """Gives and takes a few bytes at a time, as pipes do."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self.content.read(min(size, 1000))

    def write(self, data: Any) -> int:
        return self.content.write(data[:700])


def test_streams_that_give_and_take_little_at_a_time(client: Client) -> None:
    sealed, back = Dribble(), Dribble()
    client.seal_stream(Dribble(CONTENT), sealed, key="my-key", context=b"c")
    client.unseal_stream(Dribble(sealed.content.getvalue()), back, context=b"c")
    assert back.content.getvalue() == CONTENT


@contextmanager
def full_pipe() -> Iterator[BinaryIO]:
    """The writing end of a pipe, which does not wait until there is room."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(reading, "rb"), open(writing, "wb", buffering=0) as pipe:
        yield pipe


def test_what_does_not_wait_loses_nothing_in_silence(client: Client) -> None:
    with full_pipe() as pipe, pytest.raises(BlockingIOError, match="takes nothing now"):
        client.seal_stream(io.BytesIO(CONTENT), pipe, key="my-key")
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with (
        open(reading, "rb", buffering=0) as empty,
        open(writing, "wb"),
        pytest.raises(BlockingIOError, match="has nothing now"),
    ):
        client.seal_stream(empty, io.BytesIO(), key="my-key")


class Generous(io.BytesIO):
    """Gives more than it is asked for."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size + 1 if size else size)


def test_a_reader_that_gives_more_than_it_is_asked_for_is_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="gave 1025 bytes when asked for 1024"):
        client.seal_stream(Generous(CONTENT), io.BytesIO(), key="my-key", chunk_size=1024)


def test_a_stream_that_is_cut_off_raises_after_what_was_whole(client: Client) -> None:
    sealed, back = io.BytesIO(), io.BytesIO()
    client.seal_stream(io.BytesIO(CONTENT), sealed, key="my-key", chunk_size=1024)
    with pytest.raises(SealError, match="do not use what came before it"):
        client.unseal_stream(io.BytesIO(sealed.getvalue()[:100_000]), back)
    assert 0 < len(back.getvalue()) < 100_000
    assert CONTENT.startswith(back.getvalue())


# --- memory, and the end of a process ---


def test_a_large_file_needs_the_memory_of_some_chunks(client: Client, tmp_path: Path) -> None:
    size, chunk_size = 64 << 20, 256 << 10
    source, back = tmp_path / "large", tmp_path / "back"
    with open(source, "wb") as large:
        large.truncate(size)
    client.seal(source, key="my-key")  # what is imported and connected once does not count
    tracemalloc.start()
    try:
        sealed = client.seal(source, key="my-key", chunk_size=chunk_size, overwrite=True)
        client.unseal(sealed, back)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * chunk_size
    assert back.stat().st_size == size
    with open(back, "rb") as reader:
        assert all(not any(piece) for piece in iter(lambda: reader.read(1 << 20), b""))


_SEAL_WHAT_COMES = """
import os, sys
from keswick.client import Client

with Client(sys.argv[1], api_key=sys.argv[2], ca_file=sys.argv[3]) as client:
    if sys.argv[4] == "seal":
        client.seal(sys.argv[5], sys.argv[6], key="my-key")
    else:
        client.unseal(sys.argv[5], sys.argv[6])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("operation", ["seal", "unseal"])
def test_nothing_stays_of_a_process_that_ends_in_the_middle(
    server: RunningServer, client: Client, tmp_path: Path, operation: str, number: signal.Signals
) -> None:
    """It reads from a pipe that never ends, so that it is in the middle for sure."""
    sealed = io.BytesIO()
    client.seal_stream(io.BytesIO(bytes(10 << 20)), sealed, key="my-key")
    pipe, target = tmp_path / "pipe", tmp_path / "target"
    os.mkfifo(pipe)
    arguments = [server.endpoint, server.api_key, str(server.ca_file), operation, str(pipe), str(target)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", _SEAL_WHAT_COMES, *arguments], env=environment, stderr=subprocess.DEVNULL
    )
    with open(pipe, "wb") as writer:
        writer.write(sealed.getvalue()[: 5 << 20])  # more than a pipe holds: some was read, and most was written
        writer.flush()
        assert names(tmp_path) == {"pipe"}
        process.send_signal(number)
        process.wait(30)
    assert names(tmp_path) == {"pipe"}


# --- asyncio ---


def test_the_asynchronous_client(server: RunningServer, client: Client, source: Path) -> None:
    async def main() -> None:
        async with AsyncClient(server.endpoint, api_key=server.api_key, ca_file=server.ca_file) as other:
            sealed = await other.seal(source, key="my-key", context=b"c", chunk_size=2048)
            back = await other.unseal(sealed, source.with_name("back"), context=b"c")
            assert back.read_bytes() == CONTENT
            with pytest.raises(DataKeyRefused):
                await other.unseal(sealed, source.with_name("again"))
            text, stream = io.BytesIO(), io.BytesIO()
            await other.seal_stream(io.BytesIO(CONTENT), stream, key="my-key")
            await other.unseal_stream(io.BytesIO(stream.getvalue()), text)
            assert text.getvalue() == CONTENT

    asyncio.run(main())
    assert names(source.parent) == {"backup.tar", "backup.tar.sealed", "back"}
    client.unseal(source.with_name("backup.tar.sealed"), context=b"c", overwrite=True)
    assert source.read_bytes() == CONTENT


def test_many_files_at_once(server: RunningServer, tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(40)]
    for path in paths:
        path.write_bytes(CONTENT[: 1000 * int(path.name)])

    async def main() -> None:
        async with AsyncClient(server.endpoint, api_key=server.api_key, ca_file=server.ca_file) as client:
            sealed = await asyncio.gather(*(client.seal(path, key="my-key") for path in paths))
            await asyncio.gather(*(client.unseal(path, overwrite=True) for path in sealed))

    asyncio.run(main())
    assert all(path.read_bytes() == CONTENT[: 1000 * int(path.name)] for path in paths)


def test_a_cancelled_task_leaves_nothing(server: RunningServer, tmp_path: Path) -> None:
    source = tmp_path / "large"
    with open(source, "wb") as large:
        large.truncate(4 << 30)  # nobody seals as much within this test

    async def main() -> None:
        async with AsyncClient(server.endpoint, api_key=server.api_key, ca_file=server.ca_file) as client:
            task = asyncio.create_task(client.seal(source, key="my-key", chunk_size=1024))
            deadline = time.monotonic() + 30
            while not _unnamed_files(tmp_path) and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not _unnamed_files(tmp_path)

    asyncio.run(main())
    assert names(tmp_path) == {"large"}


def _unnamed_files(folder: Path) -> list[str]:
    """Files of this process in that folder, open and without a name, that something was written to."""
    found = []
    for handle in os.listdir("/proc/self/fd"):
        try:
            target, size = os.readlink(f"/proc/self/fd/{handle}"), os.stat(f"/proc/self/fd/{handle}").st_size
        except OSError:
            continue
        if target.startswith(f"{folder}/") and target.endswith(" (deleted)") and size:
            found.append(target)
    return found
