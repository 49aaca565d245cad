"""`kes backup`, `kes restore` and `kes reseal` in real processes: what they print, and what a kill does to them."""

import json
import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from keswick.crypto import KeyFormatError, SecretKey, stored
from keswick.keystore import encryptedfs
from keswick.keystore.seals.local import KeyFileSeal
from support import softhsm
from support.cli import kes, kes_in_background, kes_on_terminal
from support.golden import cases
from support.server import start_server

MANY = 1500


class Side:
    """A configuration with an encrypted folder. The TLS files that it names are not there."""

    def __init__(self, folder: Path, keystore: dict[str, Any] | None = None) -> None:
        folder.mkdir()
        self.folder = folder
        self.keys = folder / "keys"
        self.key_file = folder.parent / "master.key"
        self.configure(keystore or {"encryptedfs": {"path": str(self.keys), "keyfile": {"path": str(self.key_file)}}})

    def configure(self, keystore: dict[str, Any], name: str = "config.yaml") -> str:
        path = self.folder / name
        tls = {"key": "/nowhere/tls.key", "cert": "/nowhere/tls.crt"}
        path.write_text(json.dumps({"admin": {"identity": "ab" * 32}, "tls": tls, "keystore": keystore}))
        self.config = str(path)
        return self.config

    def open(self) -> encryptedfs.EncryptedFSStore:
        return encryptedfs.EncryptedFSStore(str(self.keys), KeyFileSeal(str(self.key_file)))

    @property
    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.keys.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Side]:
    """With three keys."""
    key_file = tmp_path / "master.key"
    key_file.touch(mode=0o600)
    key_file.write_bytes(os.urandom(32))
    side = Side(tmp_path / "source")
    store = side.open()
    for name in ("one", "three", "two"):
        store.create(name, SecretKey.generate("tests").encode())
    yield side
    store.close()


@pytest.fixture
def target(source: Side, tmp_path: Path) -> Side:
    """Without a folder yet."""
    return Side(tmp_path / "target")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.backup"


def back_up(source: Side, file: Path, *more: str) -> dict[str, Any]:
    result = kes("backup", "--config", source.config, str(file), *more)
    assert (result.code, result.stderr) == (0, "")
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def restore(target: Side, file: Path, *more: str) -> dict[str, Any]:
    result = kes("restore", "--config", target.config, str(file), *more)
    assert (result.code, result.stderr) == (0, "")
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


# --- what is printed, and what is left ---


def test_there_and_back(source: Side, target: Side, file: Path) -> None:
    assert back_up(source, file) == {
        "backup": str(file),
        "folder": str(source.keys),
        "keys": 3,
        "verified": False,
        "foreign": [],
        "failed": {},
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert restore(target, file) == {
        "backup": str(file),
        "folder": str(target.keys),
        "keys": 3,
        "verified": False,
        "dry_run": False,
    }
    assert target.files == source.files
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.keys.iterdir()} == {0o600}
    assert {path.name for path in target.folder.iterdir()} == {"config.yaml", "keys"}
    assert {path.name for path in file.parent.iterdir()} == {"keys.backup", "master.key", "source", "target"}


def test_on_a_terminal_it_is_told_in_words(source: Side, target: Side, file: Path) -> None:
    assert kes_on_terminal("backup", "--config", source.config, str(file)) == (
        0,
        f"Backed up 3 keys of '{source.keys}' to '{file}'\n",
    )
    assert kes_on_terminal("restore", "--config", target.config, "--dry-run", str(file)) == (
        0,
        "Would restore one\nWould restore three\nWould restore two\nNothing was changed: this was a dry run.\n",
    )
    assert kes_on_terminal("restore", "--config", target.config, str(file)) == (
        0,
        f"Restored 3 keys of '{file}' to '{target.keys}'\n",
    )
    code, shown = kes_on_terminal("backup", "--config", source.config, str(file), "--force", "--json")
    assert (code, json.loads(shown)["keys"]) == (0, 3)


def test_a_dry_run_lists_and_changes_nothing(source: Side, target: Side, file: Path) -> None:
    back_up(source, file)
    printed = restore(target, file, "--dry-run")
    assert (printed["dry_run"], printed["names"]) == (True, ["one", "three", "two"])
    assert not target.keys.exists()


def test_no_seal_is_needed(source: Side, target: Side, file: Path) -> None:
    source.key_file.rename(file.parent / "elsewhere")
    assert back_up(source, file)["keys"] == 3
    assert restore(target, file)["keys"] == 3
    for command in ("backup", "restore"):
        result = kes(command, "--config", source.config, "--verify", str(file.parent / "other"))
        assert (result.code, result.stdout) == (1, "")
    assert not (file.parent / "other").exists()


def test_each_key_is_verified_if_that_is_wanted(source: Side, target: Side, file: Path) -> None:
    assert back_up(source, file, "--verify")["verified"] is True
    assert restore(target, file, "--verify")["verified"] is True
    shutil.rmtree(target.keys)
    (source.keys / "one").write_bytes(source.files["two"])
    back_up(source, file, "--force")
    result = kes("restore", "--config", target.config, "--verify", str(file))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: '{file}': 'one' has been changed, or is the file of another key")
    assert not target.keys.exists()

    result = kes("backup", "--config", source.config, "--verify", "--force", str(file))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: '{file}' is kept as it is, for it may be the last backup with all keys")
    file.unlink()
    result = kes("backup", "--config", source.config, "--verify", str(file))
    assert result.code == 1
    assert json.loads(result.stdout)["failed"].keys() == {"one"}
    assert result.stderr.startswith("Warning: 'one' is not in the backup: it has been changed")
    assert result.stderr.endswith("Error: the backup is made, but without 1 key of the folder\n")
    assert restore(target, file, "--verify")["keys"] == 2


def test_what_is_not_sealed_is_named(source: Side, file: Path) -> None:
    for number in range(25):
        (source.keys / f"note-{number:02}").write_text("hunter2")
    result = kes("backup", "--config", source.config, str(file))
    assert result.code == 0
    assert json.loads(result.stdout)["foreign"] == [f"note-{number:02}" for number in range(25)]
    assert result.stderr.startswith("Warning: 'note-00' is not sealed, and is not in the backup\n")
    assert result.stderr.endswith("Warning: ... and 5 more like this; '--json' names them all\n")
    assert b"hunter2" not in file.read_bytes()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["backup"], "no backup file specified. See 'kes backup --help'"),
        (["backup", "{file}"], "no configuration file specified: name it with '--config'. See 'kes backup --help'"),
        (["restore", "{file}"], "no configuration file specified: name it with '--config'. See 'kes restore --help'"),
        (["backup", "--config", "{config}", "{file}", "more"], "too many arguments. See 'kes backup --help'"),
        (["backup", "--config", "/nix", "{file}"], "/nix"),
        (["backup", "--config", "{target}", "{file}"], "'{keys}' is no encrypted folder: it has no header"),
        (["restore", "--config", "{target}", "{file}"], "{file}: No such file or directory"),
        (
            ["restore", "--config", "{config}", "{file}"],
            "'{source}' is not empty, and what is there is not overwritten",
        ),
        (["restore", "--config", "{target}", "{config}"], "'{config}' is no backup of an encrypted folder"),
        (["backup", "--config", "{config}", "/nix/file"], "/nix/file: No such file or directory"),
        (["reseal", "--to", "{config}"], "no present seal specified: name its configuration with '--from'"),
        (["reseal", "--from", "{config}"], "no new seal specified: name its configuration with '--to'"),
        (["reseal", "--from", "{config}", "--to", "{target}"], "the two configurations name different folders"),
        (
            ["reseal", "--from", "{target}", "--to", "{target}"],
            "the encrypted folder '{keys}': it cannot be opened (No",
        ),
    ],
)
def test_what_is_called_wrongly(source: Side, target: Side, file: Path, words: list[str], told: str) -> None:
    values = {
        "file": file,
        "config": source.config,
        "target": target.config,
        "keys": target.keys,
        "source": source.keys,
    }
    before = source.files
    result = kes(*(word.format(**values) for word in words))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: " + told.format(**values)), result.stderr
    assert source.files == before
    assert not target.keys.exists()
    assert not file.exists()


def test_an_existing_file_is_kept_unless_it_is_forced(source: Side, file: Path) -> None:
    file.write_text("something")
    result = kes("backup", "--config", source.config, str(file))
    assert result == (1, "", f"Error: '{file}' already exists. Use --force to overwrite it\n")
    assert file.read_text() == "something"
    back_up(source, file, "-f")


def test_other_stores_go_by_way_of_an_encrypted_folder(source: Side, target: Side, file: Path, tmp_path: Path) -> None:
    """With keys of every form that any release has stored."""
    plain = Side(tmp_path / "plain", {"fs": {"path": str(tmp_path / "plain" / "keys")}})
    plain.keys.mkdir()
    values = {f"key-{number}": case.stored_key for number, case in enumerate(cases()) if is_key(case.stored_key)}
    for name, value in values.items():
        (plain.keys / name).write_bytes(value)
    result = kes("backup", "--config", plain.config, str(file))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith(
        f"Error: {plain.config}: the key store is 'fs', and this is for an encrypted folder"
    )
    assert "kes migrate" in result.stderr

    shutil.rmtree(source.keys)
    assert kes("migrate", "--from", plain.config, "--to", source.config).code == 0
    back_up(source, file, "--verify")
    restore(target, file)
    back = Side(tmp_path / "back", {"fs": {"path": str(tmp_path / "back" / "keys")}})
    assert kes("migrate", "--from", target.config, "--to", back.config).code == 0
    assert back.files == plain.files == values


def is_key(value: bytes) -> bool:
    try:
        stored.decode(value)
    except KeyFormatError:
        return False
    return True


# --- beside a server ---


def test_backups_while_a_server_makes_keys(source: Side, target: Side, file: Path, tmp_path: Path) -> None:
    """Each is whole, and has at least the keys that were there before it was begun. A server on what was restored opens
    what the first one has sealed."""
    keystore = {"fs": None, "encryptedfs": {"path": str(source.keys), "keyfile": {"path": str(source.key_file)}}}
    made = ["one"]
    stop = threading.Event()
    with start_server(tmp_path / "server", keystore=keystore) as server, server.client() as client:
        sealed = client.encrypt("one", b"hello")

        def create() -> None:
            for number in range(100_000):
                if stop.is_set():
                    return
                client.create_key(f"key-{number}")
                made.append(f"key-{number}")
                if number % 7 == 0:
                    client.delete_key(made.pop(-1))

        thread = threading.Thread(target=create)
        thread.start()
        try:
            for _ in range(4):
                before = set(made[:-1])
                printed = back_up(source, file, "--verify", "--force")
                assert printed["keys"] >= len(before)
                names = restore(target, file, "--verify", "--dry-run")["names"]
                assert before <= set(names)
        finally:
            stop.set()
            thread.join()
    restore(target, file)
    keystore["encryptedfs"] = {**keystore["encryptedfs"], "path": str(target.keys)}  # type: ignore[dict-item]
    with start_server(tmp_path / "server", keystore=keystore) as server, server.client() as client:
        assert client.decrypt("one", sealed) == b"hello"


# --- a kill ---


@pytest.fixture
def full(source: Side) -> Side:
    """With thousands of keys, written without waiting for the disk."""
    found = encryptedfs.read_header(str(source.keys))
    assert found is not None
    root = encryptedfs.opened(found, KeyFileSeal(str(source.key_file)))
    for number in range(MANY):
        name = f"key-{number:05}"
        (source.keys / name).write_bytes(root.seal(name, b"x" * 200))
    return source


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_restore_that_is_ended_leaves_no_folder(full: Side, target: Side, file: Path, number: signal.Signals) -> None:
    back_up(full, file)
    with kes_in_background("restore", "--config", target.config, str(file)) as process:
        wait_until(lambda: any(len(os.listdir(path)) > 100 for path in target.folder.glob(".kes-restore-*")))
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode != 0
    assert not target.keys.exists()
    if number == signal.SIGINT:
        assert {path.name for path in target.folder.iterdir()} == {"config.yaml"}
    assert restore(target, file, "--verify")["keys"] == MANY + 3
    assert {path.name for path in target.folder.iterdir()} == {"config.yaml", "keys"}
    assert target.files == full.files


def test_a_backup_that_is_killed_leaves_no_file(full: Side, file: Path) -> None:
    for pause in (0.15, 0.2, 0.25, 0.3):
        with kes_in_background("backup", "--config", full.config, str(file), "--verify") as process:
            time.sleep(pause)  # any moment will do
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=30)
        if file.exists():  # it was done before
            assert kes("restore", "--config", full.config, "--dry-run", str(file)).code == 1  # the folder is not empty
            file.unlink()
        assert {path.name for path in file.parent.iterdir()} == {"master.key", "source"}
    back_up(full, file)


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# --- another seal ---


def test_the_seal_is_changed(source: Side, tmp_path: Path) -> None:
    softhsm.new_key("cli")
    old = source.config
    path = {"path": str(source.keys)}
    new = source.configure({"encryptedfs": {**path, "pkcs11": softhsm.token().section("cli")}}, "new.yaml")
    assert kes("reseal", "--from", old, "--to", new) == (
        0,
        f'{{"folder":"{source.keys}","from":"keyfile","to":"pkcs11"}}\n',
        "",
    )
    result = kes("reseal", "--from", old, "--to", new)
    assert (result.code, result.stdout) == (1, "")
    assert "it is sealed with a token, and the configuration names a key file" in result.stderr
    assert kes_on_terminal("reseal", "--from", new, "--to", old) == (
        0,
        f"'{source.keys}' is sealed with a key file now, and no longer opened by the old seal\n",
    )
    assert source.open().get("one")


def test_reseal_in_a_plain_folder(source: Side, tmp_path: Path) -> None:
    plain = source.configure({"fs": {"path": str(source.keys)}}, "plain.yaml")
    result = kes("reseal", "--from", plain, "--to", plain)
    assert result.code == 1
    assert "the key store is 'fs'" in result.stderr
