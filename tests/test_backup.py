"""The backup of an encrypted folder: its format, damage of every kind, and that a restore is all or nothing."""

import base64
import errno
import hashlib
import json
import os
import random
import re
import stat
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick import backup
from keswick.backup import BackupError
from keswick.keystore import KeyNotFound, KeyStoreError, KeyStoreUnreachable, encryptedfs, seals
from keswick.keystore.fs import FSStore
from keswick.keystore.sealing import RootKey
from keswick.keystore.seals import header

FOLDERS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "encryptedfs" / "folders.json").read_text()
)
VECTOR = next(folder for folder in FOLDERS if folder["name"] == "key file")
FILES = {name: base64.b64decode(text) for name, text in VECTOR["files"].items()}
NAMES = sorted(FILES.keys() - {header.FILE}, key=str.encode)
WHOLE = base64.b64decode(VECTOR["backup"])


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """The folder of the vector."""
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    for name, content in FILES.items():
        (keys / name).touch(mode=0o600)
        (keys / name).write_bytes(content)
    return keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The backup of the vector."""
    file = tmp_path / "backup"
    file.write_bytes(WHOLE)
    return file


def open_seal(found: header.Header) -> RootKey:
    """As somebody does who has the key file of the vector."""
    assert isinstance(found.seal, header.ByKeyFile)
    return RootKey(hashlib.sha256(b"root key").digest())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def with_checksum(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


# --- whole ---


@pytest.mark.parametrize("vector", FOLDERS, ids=lambda vector: str(vector["name"]))
def test_a_backup_that_was_made_once_is_made_and_restored_for_ever(tmp_path: Path, vector: dict[str, Any]) -> None:
    file = tmp_path / "backup"
    file.write_bytes(base64.b64decode(vector["backup"]))
    backup.restore(file, str(tmp_path / "keys"))
    assert content(tmp_path / "keys") == {name: base64.b64decode(text) for name, text in vector["files"].items()}
    backup.make(str(tmp_path / "keys"), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == file.read_bytes()


def test_modes_and_names(keys: Path, tmp_path: Path) -> None:
    report = backup.make(str(keys), tmp_path / "backup", open_seal=open_seal)
    assert report == (NAMES, [], {})
    assert mode(tmp_path / "backup") == 0o600
    assert backup.check(tmp_path / "backup", open_seal) == NAMES
    restored = tmp_path / "deep" / "down" / "keys"
    backup.restore(tmp_path / "backup", str(restored))
    assert {mode(path) for path in restored.iterdir()} == {0o600}
    assert mode(restored) == mode(restored.parent) == 0o700
    assert {path.name for path in restored.parent.iterdir()} == {"keys"}


def test_a_folder_without_keys(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(bytes(32))
    encryptedfs.open({"path": str(tmp_path / "keys"), "keyfile.path": str(tmp_path / "key")})
    assert backup.make(str(tmp_path / "keys"), tmp_path / "backup").names == []
    backup.restore(tmp_path / "backup", str(tmp_path / "restored"))
    assert content(tmp_path / "restored") == content(tmp_path / "keys")


# --- making one ---


def test_what_is_not_sealed_or_damaged_is_left_out_and_told(keys: Path, tmp_path: Path) -> None:
    (keys / "foreign").write_bytes(b"a note")
    (keys / "cut").write_bytes(FILES["my-key"][:80])
    (keys / "nothing-left").touch()
    (keys / "renamed").write_bytes(FILES["my-key"])
    (keys / "folder").mkdir()
    report = backup.make(str(keys), tmp_path / "one")
    assert report.names == sorted([*NAMES, "renamed"], key=str.encode)
    assert report.foreign == ["foreign"]
    assert report.failed == dict.fromkeys(["cut", "nothing-left"], "it has been cut off: restore it, or move it away")
    report = backup.make(str(keys), tmp_path / "two", open_seal=open_seal)
    assert report.names == NAMES
    assert report.foreign == ["foreign"]
    assert report.failed.keys() == {"cut", "nothing-left", "renamed"}
    assert (tmp_path / "two").read_bytes() == WHOLE


def test_a_backup_that_lacks_keys_takes_the_place_of_none(keys: Path, tmp_path: Path) -> None:
    """The one before may be the last that has them."""
    backup.make(str(keys), tmp_path / "backup", overwrite=True)
    for name in ("a-cut-one", NAMES[0]):
        (keys / name).write_bytes(FILES["my-key"][:80])
    words = (
        f"'{tmp_path}/backup' is kept as it is, for it may be the last backup with all keys: '.*' it has been cut off"
    )
    with pytest.raises(BackupError, match=rf"{words}.*, and 1 more\. Write the new one to another file"):
        backup.make(str(keys), tmp_path / "backup", overwrite=True)
    assert (tmp_path / "backup").read_bytes() == WHOLE
    assert backup.make(str(keys), tmp_path / "new", overwrite=True).failed.keys() == {"a-cut-one", NAMES[0]}


def test_a_key_that_is_deleted_meanwhile_is_no_failure(
    keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = FSStore.get

    def deleted(self: FSStore, name: str) -> bytes:
        if name == "my-key":
            raise KeyNotFound(name)
        return get(self, name)

    monkeypatch.setattr(FSStore, "get", deleted)
    report = backup.make(str(keys), tmp_path / "backup")
    assert report == ([name for name in NAMES if name != "my-key"], [], {})


def test_a_folder_that_goes_away_leaves_no_backup(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(self: FSStore, name: str) -> bytes:
        raise KeyStoreUnreachable("away")

    monkeypatch.setattr(FSStore, "get", away)
    with pytest.raises(KeyStoreUnreachable):
        backup.make(str(keys), tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_header_that_changes_meanwhile(keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = FSStore.get

    def changing(self: FSStore, name: str) -> bytes:
        (keys / header.FILE).write_bytes(base64.b64decode(FOLDERS[0]["files"][header.FILE]))
        return get(self, name)

    monkeypatch.setattr(FSStore, "get", changing)
    with pytest.raises(BackupError, match="was changed meanwhile: start again"):
        backup.make(str(keys), tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_what_is_no_encrypted_folder(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for folder in (tmp_path / "plain", tmp_path / "nix", keys / "my-key"):
        with pytest.raises(BackupError, match="is no encrypted folder: it has no header"):
            backup.make(str(folder), tmp_path / "backup")
    (keys / header.FILE).write_text("{}")
    with pytest.raises(BackupError, match=r"'.*/\.keswick-folder' is no header of an encrypted folder"):
        backup.make(str(keys), tmp_path / "backup")
    assert not (tmp_path / "backup").exists()
    assert not (tmp_path / "nix").exists()


def test_a_backup_is_not_written_over_something_or_among_the_keys(keys: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup"
    file.write_text("something")
    with pytest.raises(FileExistsError):
        backup.make(str(keys), file)
    assert file.read_text() == "something"
    backup.make(str(keys), file, overwrite=True)
    assert file.read_bytes() == WHOLE
    (tmp_path / "link").symlink_to(keys)
    for inside in (keys / "backup", tmp_path / "link" / "backup"):
        with pytest.raises(BackupError, match="a backup in the folder itself would be taken for a key"):
            backup.make(str(keys), inside)
    assert content(keys) == FILES


# --- damage ---


def refused(tmp_path: Path, data: bytes) -> str:
    """Why that is no backup. Nothing is left where it was to be restored to."""
    file = tmp_path / "damaged"
    file.write_bytes(data)
    with pytest.raises(BackupError) as checked:
        backup.check(file)
    with pytest.raises(BackupError) as restored:
        backup.restore(file, str(tmp_path / "target" / "keys"))
    assert str(checked.value) == str(restored.value)
    assert not (tmp_path / "target").exists() or list((tmp_path / "target").iterdir()) == []
    return str(checked.value)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    for size in range(8, len(WHOLE), 1 if len(WHOLE) < 500 else 7):
        assert "has been cut off: get it anew, or another backup" in refused(tmp_path, WHOLE[:size])
    for size in range(8):
        assert "is no backup of an encrypted folder" in refused(tmp_path, WHOLE[:size])


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "damaged"
    for place in range(len(WHOLE)):
        file.write_bytes(WHOLE[:place] + bytes([WHOLE[place] ^ 1 << place % 8]) + WHOLE[place + 1 :])
        with pytest.raises(BackupError):
            backup.check(file)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no backup of an encrypted folder: name what 'kes backup' has written"),
        (b"PK\x03\x04", "is no backup"),
        (WHOLE[:8] + b"\x02" + WHOLE[9:], "is of version 2: a newer release of Keswick reads it"),
        (WHOLE + b"\0", "is damaged"),
        (WHOLE[:-1] + b"x", "is damaged"),
        (with_checksum(WHOLE[:-36] + bytes(4)), "is damaged"),
    ],
)
def test_what_is_no_backup(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refused(tmp_path, data)


def made_of(*entries: tuple[bytes, bytes], begin: bytes = FILES[header.FILE], count: int | None = None) -> bytes:
    """A backup with a right checksum, whatever is in it."""
    data = WHOLE[:9]
    for name, value in ((header.FILE.encode(), begin), *entries):
        data += len(name).to_bytes(2, "big") + len(value).to_bytes(4, "big") + name + value
    return with_checksum(data + bytes(2) + (len(entries) if count is None else count).to_bytes(4, "big"))


SEALED = FILES["my-key"]


@pytest.mark.parametrize(
    "data",
    [
        made_of((b"b", SEALED), (b"a", SEALED)),
        made_of((b"a", SEALED), (b"a", SEALED)),
        made_of((b"../a", SEALED)),
        made_of((b"/etc/passwd", SEALED)),
        made_of((b"..", SEALED)),
        made_of((b".hidden", SEALED)),
        made_of((header.FILE.encode(), SEALED)),
        made_of((b"a\0b", SEALED)),
        made_of((b"\xff", SEALED)),
        made_of((b"x" * 256, SEALED)),
        made_of((b"a", bytes(1 << 20) + b"x")),
        made_of((b"a", SEALED), count=2),
        made_of((b"a", b"not sealed")),
        made_of((b"a", SEALED[:80])),
        made_of(begin=b"{}"),
        made_of(begin=bytes(70_000)),
    ],
    ids=range(16),
)
def test_a_planted_backup_writes_nothing(tmp_path: Path, data: bytes) -> None:
    assert "damaged'" in refused(tmp_path, data)


def test_what_is_planted_well_is_restored(tmp_path: Path) -> None:
    (tmp_path / "backup").write_bytes(made_of((b"my-key", SEALED)))
    backup.restore(tmp_path / "backup", str(tmp_path / "keys"))
    assert content(tmp_path / "keys").keys() == {header.FILE, "my-key"}


@given(st.binary(max_size=200), st.integers(0, len(WHOLE)), st.integers(0, 60))
def test_no_bytes_make_a_check_fail_otherwise(data: bytes, place: int, gone: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "backup")
        for changed in (data, WHOLE[:9] + data, WHOLE[:place] + data + WHOLE[place + gone :]):
            file.write_bytes(changed)
            if changed != WHOLE:
                with pytest.raises(BackupError):
                    backup.check(file)


def test_with_the_seal_every_key_is_tried(tmp_path: Path) -> None:
    file = tmp_path / "backup"
    file.write_bytes(made_of((b"a", SEALED), (b"my-key", SEALED), (b"z", SEALED)))
    assert backup.check(file) == ["a", "my-key", "z"]
    with pytest.raises(BackupError, match=r"'a' has been changed, or is the file of another key .*, and 1 more"):
        backup.check(file, open_seal)


def test_a_seal_that_does_not_open(keys: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_bytes(bytes(32))
    seal = seals.of({"keyfile.path": str(tmp_path / "wrong")})

    def wrong(found: header.Header) -> RootKey:
        return encryptedfs.opened(found, seal)

    words = "does not open: the key in '.*/wrong' is another one"
    with pytest.raises(BackupError, match=f"the seal of '{file}' {words}"):
        backup.check(file, wrong)
    with pytest.raises(BackupError, match=f"the seal of '{keys}' {words}"):
        backup.make(str(keys), tmp_path / "new", open_seal=wrong)
    assert not (tmp_path / "new").exists()


# --- restoring one ---


@pytest.mark.parametrize("there", ["key", ".hidden", "folder/"])
def test_nothing_is_overwritten(file: Path, tmp_path: Path, there: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / there).mkdir() if there.endswith("/") else (target / there).touch()
    with pytest.raises(BackupError, match="is not empty, and what is there is not overwritten"):
        backup.check_target(str(target))
    with pytest.raises(BackupError, match="is not empty"):
        backup.restore(file, str(target))
    assert [path.name for path in target.iterdir()] == [there.rstrip("/")]


def test_what_comes_while_it_is_restored_is_not_overwritten_either(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    rename = os.rename

    def late(source: Path, to: Path) -> None:
        target.mkdir()
        (target / "key").write_text("of a server that has just started")
        rename(source, to)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(BackupError, match="is not empty"):
        backup.restore(file, str(target))
    assert content(target) == {"key": b"of a server that has just started"}
    assert {path.name for path in tmp_path.iterdir()} == {"backup", "target"}


def test_what_is_no_folder(file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nix")
    for name, words in {"file": "Not a directory", "file/keys": "Not a directory", "link": "leads nowhere"}.items():
        with pytest.raises(BackupError, match=words):
            backup.restore(file, str(tmp_path / name))


def test_an_empty_folder_keeps_its_owner_and_mode(file: Path, tmp_path: Path) -> None:
    real = tmp_path / "volume" / "keys"
    real.mkdir(parents=True)
    os.chown(real, 12345, 54321)
    real.chmod(0o750)
    (tmp_path / "link").symlink_to(real)
    backup.restore(file, str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert content(real) == FILES
    for path in (real, *real.iterdir()):
        found = path.stat()
        assert (found.st_uid, found.st_gid) == (12345, 54321)
        assert stat.S_IMODE(found.st_mode) == (0o750 if path == real else 0o600)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EBUSY, "is where a file system is mounted, so nothing can take its place at once: let 'path' name a"),
        (errno.EACCES, "cannot be made: Permission denied"),
    ],
)
def test_a_folder_whose_place_cannot_be_taken(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(source: Path, to: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(BackupError, match=re.escape(f"'{tmp_path}/keys' {words}")):
        backup.restore(file, str(tmp_path / "keys"))
    assert {path.name for path in tmp_path.iterdir()} == {"backup"}


def test_where_something_is_mounted_is_seen_before_anything_is_read(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (tmp_path / "keys").symlink_to(volume)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(volume))
    with pytest.raises(BackupError, match="is where a file system is mounted"):
        backup.check_target(str(tmp_path / "keys"))


def test_a_place_beside_the_folder_that_cannot_be_written_to(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", lambda path, mode, exist_ok: refuse(path, mode))
    words = (
        f"'{tmp_path}/keys' is made beside its place first, and '{tmp_path}' cannot be written to (Permission denied)"
    )
    with pytest.raises(BackupError, match=re.escape(words)):
        backup.restore(file, str(tmp_path / "keys"))


def test_a_disk_that_is_full(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create, left = FSStore.create, iter(range(2))

    def full(self: FSStore, name: str, value: bytes) -> None:
        if next(left, None) is None:
            raise KeyStoreError("cannot create the key file: No space left on device; make room on its disk")
        create(self, name, value)

    monkeypatch.setattr(FSStore, "create", full)
    with pytest.raises(KeyStoreError, match="make room"):
        backup.restore(file, str(tmp_path / "keys"))
    assert {path.name for path in tmp_path.iterdir()} == {"backup"}


def test_what_a_killed_restore_has_left_is_removed_and_what_a_running_one_makes_is_not(
    file: Path, tmp_path: Path
) -> None:
    left = tmp_path / ".kes-restore-0123456789abcdef"
    left.mkdir()
    (left / "key").touch()
    foreign = tmp_path / ".kes-restore-link"
    foreign.symlink_to(tmp_path)
    running, ending = threading.Event(), threading.Event()
    made: list[Path] = []

    def run() -> None:
        with backup._beside(tmp_path / "other") as folder:
            made.append(folder)
            running.set()
            ending.wait(30)
            assert folder.exists()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert running.wait(30)
        left.mkdir(exist_ok=True)
        backup.restore(file, str(tmp_path / "keys"))
        assert not left.exists()
        assert made[0].exists()
    finally:
        ending.set()
        thread.join()
    assert {path.name for path in tmp_path.iterdir()} == {"backup", "keys", foreign.name}


def test_many_restores_beside_each_other_do_not_take_each_other_for_killed_ones(file: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        for attempt in range(20):
            targets = [tmp_path / f"keys-{attempt}-{number}" for number in range(6)]
            list(pool.map(lambda target: backup.restore(file, str(target)), targets))
            assert all(content(target) == FILES for target in targets)


def test_a_restore_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    """Whoever looks meanwhile finds no folder, or all of it."""
    root = RootKey.new()
    chance = random.Random(3)
    names = sorted(f"key-{number}" for number in range(300))
    data = made_of(*((name.encode(), root.seal(name, chance.randbytes(40))) for name in names))
    (tmp_path / "backup").write_bytes(data)
    target, seen, done = tmp_path / "keys", set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                seen.add(len(os.listdir(target)))
            except FileNotFoundError:
                seen.add(-1)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        backup.restore(tmp_path / "backup", str(target))
    finally:
        done.set()
        watcher.join()
    assert seen <= {-1, 301}
    assert len(os.listdir(target)) == 301
