"""`kes migrate` in real processes: what it prints, what it leaves, and what a kill does to it."""

import base64
import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from keswick.crypto import KeyFormatError, SecretKey, stored
from keswick.migration import Journal
from support.cli import COMMAND, Terminal, clean_environment, kes, kes_in_background, kes_on_terminal
from support.golden import cases

HEADER = "Starting key migration:\n\n"
MANY = 10_000


class Side:
    """A configuration with its own key folder. The TLS files that it names are not there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.keys = folder / "keys"
        self.config = folder / "config.yaml"
        self.journal = folder / "config.yaml.migration-journal"
        self.config.write_text(
            json.dumps(
                {
                    "admin": {"identity": "ab" * 32},
                    "tls": {"key": "/nowhere/tls.key", "cert": "/nowhere/tls.crt"},
                    "keystore": {"fs": {"path": str(self.keys)}},
                }
            )
        )

    def fill(self, names: Sequence[str]) -> dict[str, bytes]:
        self.keys.mkdir(exist_ok=True)
        values = {name: SecretKey.generate("tests").encode() for name in names}
        for name, value in values.items():
            (self.keys / name).write_bytes(value)
        return values

    @property
    def values(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.keys.iterdir()}


@pytest.fixture
def source(tmp_path: Path) -> Side:
    return Side(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> Side:
    return Side(tmp_path / "target")


def words(source: Side, target: Side, *more: str) -> list[str]:
    return ["migrate", "--from", str(source.config), "--to", str(target.config), *more]


def names(count: int) -> list[str]:
    return [f"key-{number:05}" for number in range(count)]


# --- what is printed ---


def test_keys_are_migrated(source: Side, target: Side) -> None:
    values = source.fill(names(5))
    assert kes(*words(source, target)) == (
        0,
        HEADER + "Migrated      5 keys successfully!\nKeys: 5 read, 5 copied, 0 skipped, 0 foreign, 0 failed\n",
        "",
    )
    assert target.values == source.values == values
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.keys.iterdir()} == {0o600}
    assert {path.name for path in target.config.parent.iterdir()} == {"config.yaml", "keys"}

    assert kes(*words(source, target)) == (
        0,
        HEADER + "Migration succeeded! No keys migrated.\nKeys: 5 read, 0 copied, 5 skipped, 0 foreign, 0 failed\n",
        "",
    )


def test_all_stored_forms_stay_as_they_are(source: Side, target: Side) -> None:
    values = {f"key-{number}": case.stored_key for number, case in enumerate(cases())}
    source.keys.mkdir()
    for name, value in values.items():
        (source.keys / name).write_bytes(value)
    readable = {name: value for name, value in values.items() if is_key(value)}
    result = json.loads(kes(*words(source, target, "--json")).stdout)
    assert result["copied"] == len(readable) > 120
    assert result["names"]["foreign"] == sorted(values.keys() - readable.keys())
    assert target.values == readable


def is_key(value: bytes) -> bool:
    try:
        stored.decode(value)
    except KeyFormatError:
        return False
    return True


def test_what_is_no_key_is_named_and_not_copied(source: Side, target: Side) -> None:
    source.fill(["key"])
    (source.keys / "notes.txt").write_text("hunter2")
    result = kes(*words(source, target))
    assert result.code == 0
    assert result.stdout.endswith("Keys: 2 read, 1 copied, 0 skipped, 1 foreign, 0 failed\n")
    assert result.stderr == "Warning: 'notes.txt' is no key and was not copied\n"
    assert list(target.values) == ["key"]


def test_a_long_list_of_names_is_cut(source: Side, target: Side) -> None:
    source.keys.mkdir()
    for name in names(30):
        (source.keys / name).write_text("no key")
    stderr = kes(*words(source, target)).stderr
    assert stderr.count("Warning: ") == 20
    assert stderr.endswith("... and 10 more like this; '--json' names them all\n")
    assert json.loads(kes(*words(source, target, "--json")).stdout)["names"]["foreign"] == names(30)


def test_a_pattern_selects(source: Side, target: Side) -> None:
    source.fill(["app-1", "app-2", "web-1"])
    assert "Migrated      1 key successfully!" in kes(*words(source, target, "web-*")).stdout
    assert list(target.values) == ["web-1"]
    assert kes(*words(source, target, "app-[1-2]")).code == 0
    assert target.values == source.values
    nothing = kes(*words(source, target, "ap-*"))
    assert (nothing.code, nothing.stderr) == (0, "Warning: no key of the source matches 'ap-*'\n")


def test_json_is_all_that_is_printed(source: Side, target: Side) -> None:
    source.fill(names(3))
    result = kes(*words(source, target, "--json"))
    assert (result.code, result.stderr, result.stdout.count("\n")) == (0, "", 1)
    assert json.loads(result.stdout) == {
        "complete": True,
        "dry_run": False,
        "read": 3,
        "copied": 3,
        "skipped": 0,
        "replaced": 0,
        "restored": 0,
        "different": 0,
        "foreign": 0,
        "failed": 0,
        "not_tried": 0,
        "names": {"different": [], "foreign": [], "failed": {}},
        "error": None,
        "journal": None,
    }


def test_the_command_of_2021(source: Side, target: Side) -> None:
    source.fill(names(3))
    assert kes("tool", *words(source, target)).stdout.startswith(HEADER + "Migrated      3 keys successfully!\n")
    assert target.values == source.values


def test_quiet(source: Side, target: Side) -> None:
    source.fill(names(3))
    assert kes(*words(source, target, "-q")) == (0, "", "")
    assert target.values == source.values


def test_the_progress_is_told_each_second(source: Side, target: Side) -> None:
    source.fill(names(4000))
    result = kes(*words(source, target))
    lines = result.stdout.removeprefix(HEADER).splitlines()
    assert lines[-2:] == [
        "Migrated   4000 keys successfully!",
        "Keys: 4000 read, 4000 copied, 0 skipped, 0 foreign, 0 failed",
    ]
    counts = [
        int(line.removeprefix("Migrated ").removesuffix("keys ...").removesuffix("key  ...")) for line in lines[:-2]
    ]
    assert counts == sorted(counts)
    assert all(0 <= count <= 4000 for count in counts)
    assert target.values == source.values


def test_on_a_terminal_there_is_a_bar(source: Side, target: Side) -> None:
    source.fill(names(MANY))
    code, shown = kes_on_terminal(*words(source, target))
    assert code == 0
    assert "Migrating keys" in shown
    assert " of 10,000" in shown
    assert "keys ..." not in shown
    assert "\x1b[?25l" not in shown, "the cursor is never hidden"
    assert shown.endswith(
        "Migrated  10000 keys successfully!\nKeys: 10000 read, 10000 copied, 0 skipped, 0 foreign, 0 failed\n"
    )


# --- names that the target has already ---


def test_another_key_of_the_same_name(source: Side, target: Side) -> None:
    old = target.fill(["key-00001", "own"])
    new = source.fill(names(3))

    result = kes(*words(source, target))
    assert (result.code, result.stdout) == (
        1,
        HEADER + "Keys: 1 read, 0 copied, 0 skipped, 1 different, 0 foreign, 0 failed, 2 not tried\n",
    )
    assert result.stderr == (
        "Error: key already exists: the target has other keys under the same names, 'key-00001'. "
        "'--merge' keeps the target's, '--force' replaces them\n"
    )
    assert target.values == old

    result = kes(*words(source, target, "--merge"))
    assert result.code == 1
    assert result.stdout.endswith("\nKeys: 3 read, 2 copied, 0 skipped, 1 different, 0 foreign, 0 failed\n")
    assert "successfully" not in result.stdout
    assert result.stderr == (
        "Warning: 'key-00001' was not copied: the target keeps another key of this name\n"
        "Error: not every key of the source is at the target: 1 key would have to replace another, which the target "
        "keeps\n"
    )
    assert target.values == new | old

    result = kes(*words(source, target, "--force"))
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.endswith("Keys: 3 read, 0 copied, 2 skipped, 1 replaced, 0 foreign, 0 failed\n")
    assert target.values == old | new
    assert not target.journal.exists()


def test_a_dry_run_changes_nothing(source: Side, target: Side) -> None:
    source.fill(["a", "b"])
    result = kes(*words(source, target, "--dry-run"))
    assert result == (
        0,
        HEADER + "Would copy a\nWould copy b\nNothing was changed: this was a dry run.\n"
        "Keys: 2 read, 2 copied, 0 skipped, 0 foreign, 0 failed\n",
        "",
    )
    assert [path.name for path in target.config.parent.iterdir()] == ["config.yaml"], "not even a key folder"

    target.fill(["b"])
    before = target.values
    assert kes(*words(source, target, "--dry-run")).code == 1
    assert kes(*words(source, target, "--dry-run", "--merge")).code == 1
    result = kes(*words(source, target, "--dry-run", "--force"))
    assert result.code == 0
    assert "Would copy a\nWould replace b\n" in result.stdout
    assert target.values == before
    assert {path.name for path in target.config.parent.iterdir()} == {"config.yaml", "keys"}


def test_an_encrypted_folder_without_a_header_is_not_given_one(source: Side, target: Side, tmp_path: Path) -> None:
    """As a source it may be one that is not mounted. As a target it is made by what is no dry run."""
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_bytes(os.urandom(32))
    config = json.loads(target.config.read_text())
    encrypted = {"path": str(target.keys), "keyfile": {"path": str(tmp_path / "key")}}
    target.config.write_text(json.dumps(config | {"keystore": {"encryptedfs": encrypted}}))
    source.fill(["a"])
    target.keys.mkdir()
    result = kes(*words(target, source))
    error = f"Error: source: the key folder '{target.keys}' is empty, and has no header: is it mounted?\n"
    assert result == (1, "", error)
    assert "Would copy a\n" in kes(*words(source, target, "--dry-run")).stdout
    assert list(target.keys.iterdir()) == []
    assert kes(*words(source, target)).code == 0
    assert {path.name for path in target.keys.iterdir()} == {".keswick-folder", "a"}

    shutil.rmtree(target.keys)
    (tmp_path / "key").unlink()
    result = kes(*words(source, target, "--dry-run"))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: target: the encrypted folder '"), "it could not be made"


# --- what cannot be done ---


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "no source specified. Use '--from' flag"),
        (["--to", "{target}"], "no source specified. Use '--from' flag"),
        (["--from", "{source}"], "missing migration target. Use '--to'"),
        (["--from", "nope.yml", "--to", "{target}"], "nope.yml: there is no such file"),
        (["--from", "{source}", "--to", "nope.yml"], "nope.yml: there is no such file"),
        (
            ["--from", "{source}", "--to", "{target}", "--merge", "-f"],
            "'--force' and '--merge' flags are mutually excl",
        ),
        (["--from", "{source}", "--to", "{target}", "a", "b"], "too many arguments"),
        (["--from", "{source}", "--to", "{target}", "[a"], "the rule '[a' is malformed at character 1"),
        (["--from", "{source}", "--to", "{source}"], "source and target are the same key store"),
        (["--from", "{source}", "-s", "127.0.0.1:7373"], "a MinIO KMS server as the target is not supported"),
        (["--from", "{source}", "-e", "a", "-a", "k"], "a MinIO KMS server as the target is not supported"),
        (["--from", "{target}", "--to", "{source}"], "source: the key folder '"),
        (["--from", "{incomplete}", "--to", "{target}"], "{incomplete}: "),
        (["--from", "{vault}", "--to", "{target}"], "source: "),
    ],
)
def test_what_is_wrong_is_said(source: Side, target: Side, tmp_path: Path, arguments: list[str], error: str) -> None:
    source.fill(["key"])
    files = {"source": source.config, "target": target.config}
    unreachable = {"vault": {"endpoint": "https://127.0.0.1:1", "approle": {"id": "a", "secret": "b"}}}
    for name, keystore in (("incomplete", None), ("vault", unreachable)):
        files[name] = tmp_path / f"{name}.yaml"
        content = json.loads(source.config.read_text())
        files[name].write_text(json.dumps(content | {"keystore": keystore}))
    result = kes("migrate", *(argument.format(**files) for argument in arguments))
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: " + error.format(**files)), result.stderr
    assert not target.keys.exists()
    assert not target.journal.exists()


@pytest.mark.parametrize("how", ["link", "dots", "trailing slash"])
def test_one_folder_by_two_names_is_refused(source: Side, target: Side, tmp_path: Path, how: str) -> None:
    source.fill(["key"])
    (tmp_path / "link").symlink_to(source.keys)
    path = {"link": tmp_path / "link", "dots": f"{source.keys}/../keys", "trailing slash": f"{source.keys}/"}[how]
    content = json.loads(target.config.read_text()) | {"keystore": {"fs": {"path": str(path)}}}
    target.config.write_text(json.dumps(content))
    result = kes(*words(source, target, "--force"))
    assert (result.code, result.stdout) == (1, "")
    assert "are the same key store" in result.stderr


def test_a_second_migration_to_one_target_is_refused(source: Side, target: Side) -> None:
    source.fill(["key"])
    with target.journal.open("w") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        result = kes(*words(source, target))
    assert (result.code, result.stdout) == (1, "")
    assert "another migration to this target is running" in result.stderr
    assert not target.keys.exists()


def test_failures_are_named_and_the_others_copied(source: Side, target: Side) -> None:
    source.fill(names(3))
    target.keys.mkdir()
    (target.keys / "key-00001").mkdir()  # something that is in the way
    result = kes(*words(source, target))
    assert result.code == 1
    assert result.stdout.endswith("Keys: 3 read, 2 copied, 0 skipped, 0 foreign, 1 failed\n")
    assert "Failed to migrate 'key-00001': target: " in result.stderr
    assert result.stderr.endswith("Error: not every key of the source is at the target: 1 key failed\n")
    result = kes(*words(source, target, "--json"))
    assert result.code == 1
    assert "in the way" in json.loads(result.stdout)["names"]["failed"]["key-00001"]


def test_no_value_is_ever_shown(source: Side, target: Side) -> None:
    old = target.fill(names(3))
    new = source.fill(names(5))
    (source.keys / "foreign").write_text("hunter2")
    secrets = [value.decode() for value in (*old.values(), *new.values())] + ["hunter2"]
    for flags in ([], ["--dry-run"], ["--merge"], ["--merge", "--json"], ["--force"]):
        result = kes(*words(source, target, *flags))
        assert not [secret for secret in secrets if secret in result.stdout + result.stderr]


# --- interrupts and kills ---


def grown(target: Side, count: int) -> Callable[[], bool]:
    """Whether so many keys are at the target."""
    return lambda: target.keys.exists() and sum(1 for _ in os.scandir(target.keys)) >= count


def journalled(target: Side, count: int) -> Callable[[], bool]:
    """Whether so many values are in the journal."""
    return lambda: target.journal.exists() and target.journal.read_bytes().count(b"\n") >= count


def kill_when(reached: Callable[[], bool], arguments: Sequence[str]) -> None:
    process = subprocess.Popen([*COMMAND, *arguments], env=clean_environment(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not reached():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.001)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL


def test_a_run_may_be_killed_anywhere_and_goes_on(source: Side, target: Side) -> None:
    values = source.fill(names(MANY))
    for count in (1, 1000, 4000, 8000):
        kill_when(grown(target, count), words(source, target))
        there = target.values
        assert len(there) < MANY
        assert there.items() <= values.items(), "each key is there as a whole or not at all"
    result = kes(*words(source, target, "--json"))
    assert result.code == 0
    counts = json.loads(result.stdout)
    assert counts["skipped"] == len(there)
    assert counts["copied"] == MANY - len(there)
    assert target.values == source.values == values
    assert not target.journal.exists()


def test_a_run_that_replaces_may_be_killed_anywhere_and_goes_on(source: Side, target: Side) -> None:
    count = 4000
    old, new = target.fill(names(count)), source.fill(names(count))
    missing = 0
    for more in (1, 20, 300, 700, 1000):
        kill_when(journalled(target, count_lines(target.journal) + more), words(source, target, "--force"))
        assert stat.S_IMODE(target.journal.stat().st_mode) == 0o600
        there = target.values
        recorded = read_whole_lines(target.journal)
        for name in names(count):
            if name in there:
                assert there[name] in (old[name], new[name])
            else:
                assert recorded[name] == old[name], "what is missing is in the journal"
                missing += 1
        # A run that replaces nothing restores what is missing.
        assert kes(*words(source, target, "--merge", "-q")).code == 1
        there = target.values
        assert all(there[name] in (old[name], new[name]) for name in names(count))
        assert target.journal.exists()
    assert missing, "the kills hit nothing"
    result = kes(*words(source, target, "--force"))
    assert (result.code, result.stderr) == (0, "")
    assert target.values == new
    assert not target.journal.exists()


def count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def read_whole_lines(journal: Path) -> dict[str, bytes]:
    entries = [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return {entry["name"]: base64.b64decode(entry["value"]) for entry in entries}


def test_an_interrupt_ends_it_cleanly(source: Side, target: Side) -> None:
    source.fill(names(4000))
    with kes_in_background(*words(source, target)) as process:
        while not grown(target, 500)():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr == "Error: interrupted; start the same migration again to go on\n"
    summary = stdout.splitlines()[-1]
    copied = len(target.values)
    assert f" {copied} copied, " in summary
    assert f", {4000 - copied} not tried" in summary
    assert kes(*words(source, target)).code == 0
    assert target.values == source.values


def test_an_interrupt_leaves_the_terminal_clean(source: Side, target: Side) -> None:
    source.fill(names(MANY))
    with Terminal(*words(source, target)) as terminal:
        terminal.wait_for("Migrating keys")
        terminal.press_ctrl_c()
        assert terminal.wait() == 1
        assert terminal.is_clean
        assert [line.partition(":")[0] for line in terminal.lines if line] == [
            "Starting key migration",
            "Keys",
            "Error",
        ]


def test_a_reader_that_has_gone_ends_it(source: Side, target: Side) -> None:
    source.fill(names(4000))
    command = '"$@" | head -n 1; echo "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", command, "bash", *COMMAND, *words(source, target)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["Starting key migration:", "1"]
    assert done.stderr == ""
    assert target.values.items() <= source.values.items()


# --- the journal of a run that was killed ---


def test_a_dry_run_tells_of_a_journal(source: Side, target: Side) -> None:
    leave_journal(target, "key", SecretKey.generate("tests").encode())
    source.fill(["other"])
    before = target.journal.read_bytes()
    result = kes(*words(source, target, "--dry-run"))
    assert result.code == 0
    assert "an earlier migration did not end well" in result.stderr
    assert str(target.journal) in result.stderr
    assert target.journal.read_bytes() == before


def test_what_was_deleted_is_back_after_the_next_run(source: Side, target: Side) -> None:
    value = SecretKey.generate("tests").encode()
    leave_journal(target, "key", value)
    values = source.fill(["other"])
    result = kes(*words(source, target))
    assert result.code == 0
    assert result.stdout.endswith("Keys: 1 read, 1 copied, 0 skipped, 1 restored, 0 foreign, 0 failed\n")
    assert target.values == values | {"key": value}
    assert not target.journal.exists()


def test_a_journal_that_is_needed_still_is_named(source: Side, target: Side) -> None:
    leave_journal(target, "key", SecretKey.generate("tests").encode())
    target.fill(["other"])
    source.fill(["other"])
    result = kes(*words(source, target))
    assert result.code == 1
    assert f"Values that were deleted at the target are in '{target.journal}'" in result.stderr
    assert json.loads(kes(*words(source, target, "--json")).stdout)["journal"] == str(target.journal)


def test_a_journal_of_another_key_folder_is_refused(source: Side, target: Side, tmp_path: Path) -> None:
    leave_journal(target, "key", b"value")
    content = json.loads(target.config.read_text()) | {"keystore": {"fs": {"path": str(tmp_path / "new")}}}
    target.config.write_text(json.dumps(content))
    source.fill(["other"])
    result = kes(*words(source, target))
    assert result.code == 1
    assert f"is about another key store (fs {target.keys})" in result.stderr


def leave_journal(side: Side, name: str, value: bytes) -> None:
    with Journal(side.journal, f"fs {side.keys}") as journal:
        journal.record(name, value)


def test_where_no_journal_can_be_written_nothing_is_replaced(source: Side, target: Side) -> None:
    """As in a folder that is mounted to be read only: to copy needs no journal."""
    target.config = target.config.rename(target.config.with_name("x" * 250))  # which leaves no room for a longer name
    values = source.fill(names(2))
    assert kes(*words(source, target)).code == 0
    assert target.values == values
    source.fill(names(1))
    result = kes(*words(source, target, "--force"))
    assert (result.code, result.stdout) == (1, "")
    assert "put the target's configuration into a folder that you can write to" in result.stderr
    assert target.values == values
