import errno
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from keswick.keystore import KeyExists, KeyNotFound, KeyStoreError, KeyStoreUnreachable
from keswick.keystore.fs import FSStore
from support.server import start_server
from support.store_page import shown_keystore

ENVIRONMENT = {**os.environ, "PYTHONPATH": ":".join(sys.path)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def store(folder: Path) -> FSStore:
    return FSStore(str(folder))


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process that runs `script`; it prints `ready`, and goes on when a line is written to it."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the folder and its files ---


def test_a_missing_folder_is_made_with_its_parents_for_the_owner_alone(tmp_path: Path) -> None:
    store = FSStore(str(tmp_path / "a" / "b" / "keys"))
    store.create("key", b"value")
    for folder in ("a", "a/b", "a/b/keys"):
        assert mode(tmp_path / folder) == 0o700
    assert mode(tmp_path / "a/b/keys/key") == 0o600


def test_the_file_is_the_value_and_nothing_else_is_left(store: FSStore, folder: Path) -> None:
    store.create("key", b"value")
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [("key", b"value")]


def test_a_folder_that_is_there_keeps_its_mode_and_its_keys(folder: Path) -> None:
    folder.mkdir(0o750)
    (folder / "key").write_bytes(b"value")
    assert FSStore(str(folder)).get("key") == b"value"
    assert mode(folder) == 0o750


@pytest.mark.parametrize("below", ["file", "file/keys"])
def test_a_path_that_is_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(KeyStoreError, match="is not a folder"):
        FSStore(str(tmp_path / below))


def test_a_folder_that_is_gone_is_an_outage_until_it_is_back(store: FSStore, folder: Path) -> None:
    store.create("key", b"value")
    folder.rename(folder.with_name("away"))
    for call in (
        store.status,
        lambda: store.get("key"),
        lambda: store.create("new", b"value"),
        lambda: store.delete("key"),
        lambda: store.list(""),
    ):
        with pytest.raises(KeyStoreUnreachable, match=str(folder)):
            call()
    folder.with_name("away").rename(folder)
    assert store.status() >= 0
    assert store.get("key") == b"value"


def test_a_folder_that_is_no_longer_mounted_is_away_and_not_empty(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        assert os.stat(disk).st_dev != tmp_path.stat().st_dev, "this test needs two file systems"
        keys = tmp_path / "keys"
        keys.symlink_to(disk)  # as a mount would, it leads to another file system
        store = FSStore(str(keys))
        store.create("key", b"value")
        keys.unlink()
        keys.mkdir()
        for call in (
            store.status,
            lambda: store.get("key"),
            lambda: store.create("key", b"new"),
            lambda: store.list(""),
        ):
            with pytest.raises(KeyStoreUnreachable, match="no longer mounted"):
                call()
        keys.rmdir()
        keys.symlink_to(disk)
        assert store.get("key") == b"value"


def test_a_folder_that_became_a_file_is_an_error(store: FSStore, folder: Path) -> None:
    folder.rmdir()
    folder.write_bytes(b"")
    with pytest.raises(KeyStoreError, match="cannot open the key folder") as caught:
        store.status()
    assert not isinstance(caught.value, KeyStoreUnreachable)


def test_exposed_keys_and_folders_are_warned_of(store: FSStore, folder: Path) -> None:
    store.create("private", b"value")
    assert store.warnings() == []
    store.create("b", b"value")
    store.create("a", b"value")
    (folder / "a").chmod(0o604)
    (folder / "b").chmod(0o640)
    folder.chmod(0o770)
    written, read = store.warnings()
    assert "0700" in written
    assert "2 key file(s)" in read
    assert "'a'" in read


# --- foreign things ---


def test_foreign_things_are_ignored(store: FSStore, folder: Path) -> None:
    store.create("key", b"value")
    (folder / "folder").mkdir()
    (folder / ".hidden").write_bytes(b"value")
    (folder / "back\\slash").write_bytes(b"value")
    (folder / "nowhere").symlink_to(folder / "nothing")
    (folder / "circle").symlink_to("circle")
    (folder / "to-folder").symlink_to(folder / "folder")
    os.mkfifo(folder / "pipe")
    os.close(os.open(os.fsencode(folder) + b"/\xff", os.O_CREAT | os.O_WRONLY))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    assert store.list("") == ["key"]
    foreign = ["folder", ".hidden", "back\\slash", "nowhere", "circle", "to-folder", "pipe", "\udcff", "socket"]
    for name in [*foreign, "../keys/key", "key/", "", ".", "..", "a\0b", "x" * 256]:
        with pytest.raises(KeyNotFound):
            store.get(name)
        with pytest.raises(KeyNotFound):
            store.delete(name)
    assert len(os.listdir(folder)) == 1 + len(foreign)


def test_a_linked_file_is_a_key(store: FSStore, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mounted").write_bytes(b"value")
    (folder / "key").symlink_to(tmp_path / "mounted")
    assert store.get("key") == b"value"
    assert store.list("") == ["key"]
    with pytest.raises(KeyExists):
        store.create("key", b"another")
    store.delete("key")
    assert (tmp_path / "mounted").read_bytes() == b"value"


@pytest.mark.parametrize("name", ["../key", "a/b", ".key", "", ".", "..", "a\0b", "a\\b", "x" * 256, "\udcff"])
def test_a_name_that_is_no_file_name_is_refused(store: FSStore, folder: Path, name: str) -> None:
    with pytest.raises(KeyStoreError, match="cannot be the name"):
        store.create(name, b"value")
    assert os.listdir(folder) == []
    assert os.listdir(folder.parent) == ["keys"]


def test_old_names_are_kept(store: FSStore) -> None:
    for name in ("my key.v1", "schlüssel", "ü" * 127, "~"):
        store.create(name, b"value")
        assert store.get(name) == b"value"
    assert len(store.list("")) == 4


def test_something_foreign_in_the_way_is_named(store: FSStore, folder: Path) -> None:
    (folder / "key").mkdir()
    with pytest.raises(KeyStoreError, match="in the way"):
        store.create("key", b"value")


def test_a_file_too_large_for_a_key_is_refused(store: FSStore, folder: Path) -> None:
    (folder / "large").write_bytes(b"x" * (1 << 20))
    assert len(store.get("large")) == 1 << 20
    (folder / "larger").write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(KeyStoreError, match="larger than 1048576 bytes"):
        store.get("larger")


# --- permissions ---


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A new folder of a user who is not root, and this process acting as that user."""
    root = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.chown(root, 65534, 65534)
            os.seteuid(65534)
        yield root
    finally:
        if is_root:
            os.seteuid(0)
        (root / "keys").chmod(0o700)
        shutil.rmtree(root)


def test_what_may_not_be_read_or_written_is_an_error_that_says_so() -> None:
    with as_nobody() as root:
        store = FSStore(str(root / "keys"))
        store.create("key", b"value")
        (root / "keys" / "key").chmod(0)
        with pytest.raises(KeyStoreError, match=r"read the key file '.*/key': Permission denied"):
            store.get("key")
        (root / "keys").chmod(0o500)
        with pytest.raises(KeyStoreError, match=r"create the key file .* Permission denied"):
            store.create("new", b"value")
        with pytest.raises(KeyStoreError, match=r"delete the key file .* Permission denied"):
            store.delete("key")
        assert store.list("") == ["key"]
        assert store.status() >= 0
        for unusable in (0o300, 0o600):
            (root / "keys").chmod(unusable)
            with pytest.raises(KeyStoreError, match=r"open the key folder .* Permission denied") as caught:
                store.status()
            assert not isinstance(caught.value, KeyStoreUnreachable)


# --- writes that fail, file systems that lack something ---


@pytest.fixture
def without_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    system_open = os.open

    def open_as_older_file_systems_do(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return system_open(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_as_older_file_systems_do)


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_without_proc(source: str, target: str, **options: Any) -> None:
        if source.startswith("/proc/"):
            raise FileNotFoundError(errno.ENOENT, "no such file")
        link(source, target, **options)

    monkeypatch.setattr(os, "link", link_without_proc)


@pytest.mark.parametrize("lack", ["without_nameless_files", "without_proc"])
def test_creating_works_without_nameless_files(
    request: pytest.FixtureRequest, store: FSStore, folder: Path, lack: str
) -> None:
    request.getfixturevalue(lack)
    store.create("key", b"value")
    with pytest.raises(KeyExists):
        store.create("key", b"another")
    assert store.get("key") == b"value"
    assert mode(folder / "key") == 0o600
    assert os.listdir(folder) == ["key"]


@pytest.mark.parametrize("nameless", [True, False])
def test_a_full_disk_leaves_nothing(
    request: pytest.FixtureRequest, store: FSStore, folder: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    if not nameless:
        request.getfixturevalue("without_nameless_files")
    write, written = os.write, 0

    def write_three_bytes(file: int, data: bytes) -> int:
        nonlocal written
        if written:
            raise OSError(errno.ENOSPC, "no space")
        written = write(file, data[:3])
        return written

    monkeypatch.setattr(os, "write", write_three_bytes)
    with pytest.raises(KeyStoreError, match="make room on its disk") as caught:
        store.create("key", b"a secret value")
    assert written == 3
    assert "secret" not in str(caught.value)
    assert os.listdir(folder) == []


def test_only_our_own_stale_files_are_removed(store: FSStore, folder: Path) -> None:
    old = time.time() - 7200
    ours, running, others = (f".keswick-{'a' * 32}.tmp", f".keswick-{'b' * 32}.tmp", ".keswick-notes.tmp")
    header = f".kes-{'a' * 16}.tmp"  # of an encrypted folder
    for name in (ours, header, running, others):
        (folder / name).write_bytes(b"half a ke")
    for name in (ours, header, others):
        os.utime(folder / name, (old, old))
    assert store.list("") == []
    FSStore(str(folder))
    assert sorted(os.listdir(folder)) == sorted([running, others])


# --- several processes ---

RACE = """
import sys
from keswick.keystore import KeyExists
from keswick.keystore.fs import FSStore
store = FSStore(sys.argv[1])
print("ready", flush=True)
input()
for number in range(300):
    try:
        store.create(f"key-{number}", sys.argv[2].encode())
        print(number, flush=True)
    except KeyExists:
        pass
"""


def test_of_two_processes_exactly_one_creates_a_key(store: FSStore, folder: Path) -> None:
    racers = {name: python(RACE, str(folder), name) for name in ("first", "second")}
    for racer in racers.values():
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers.values():
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = {name: {int(line) for line in racer.communicate()[0].split()} for name, racer in racers.items()}
    assert won["first"] | won["second"] == set(range(300))
    assert not won["first"] & won["second"]
    for name, numbers in won.items():
        assert all(store.get(f"key-{number}") == name.encode() for number in numbers)


READ = """
import os, sys
from keswick.keystore.fs import FSStore
store = FSStore(sys.argv[1])
print("ready", flush=True)
lengths = set()
while not os.path.exists(sys.argv[2]):
    lengths.update(len(store.get(name)) for name in store.list(""))
print(sorted(lengths), flush=True)
"""


def test_a_reader_in_another_process_never_sees_half_a_key(store: FSStore, folder: Path, tmp_path: Path) -> None:
    done = tmp_path / "done"
    with python(READ, str(folder), str(done)) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for number in range(100):
            store.create(f"key-{number}", b"x" * 50_000)
        done.touch()
        assert reader.stdout.readline() == "[50000]\n"


CREATE_FOR_EVER = """
import errno, itertools, os, sys
from keswick.keystore.fs import FSStore
if sys.argv[3] == "named":
    system_open = os.open
    def older_open(path, flags, mode=0o777, *, dir_fd=None):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return system_open(path, flags, mode, dir_fd=dir_fd)
    os.open = older_open
store = FSStore(sys.argv[1])
for number in itertools.count():
    store.create(f"{sys.argv[2]}-{number}", b"x" * 20_000)
    print(f"{sys.argv[2]}-{number}", flush=True)
"""


@pytest.mark.parametrize("way", ["nameless", "named"])
def test_a_kill_leaves_whole_keys_only(store: FSStore, folder: Path, way: str) -> None:
    for life in range(5):
        with python(CREATE_FOR_EVER, str(folder), f"life-{life}", way) as creator:
            assert creator.stdout is not None
            acknowledged = [creator.stdout.readline().strip() for _ in range(random.randint(1, 60))]
            creator.send_signal(signal.SIGKILL)
            acknowledged += creator.stdout.read().split("\n")[:-1]
        assert acknowledged
        assert set(acknowledged) <= set(store.list(f"life-{life}"))
    assert {len(store.get(name)) for name in store.list("")} == {20_000}


def test_a_server_runs_with_the_configuration_of_the_page(tmp_path: Path) -> None:
    section = shown_keystore("keystore-folder.md")["fs"]
    kept = tmp_path / section["path"].lstrip("/")
    with start_server(tmp_path / "kes", keystore={"fs": {**section, "path": str(kept)}}) as server:
        with server.client() as client:
            client.create_key("my-key")
            assert client.generate_key("my-key").plaintext
        assert f"Filesystem: {kept}" in server.stdout
    assert [path.name for path in kept.iterdir()] == ["my-key"]
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
