"""The engine of `kes migrate`, over stores that do what real ones do on bad days."""

import json
import os
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.crypto import SecretKey
from keswick.keystore import KeyNotFound, KeyNotShown, KeyStore, KeyStoreError, KeyStoreUnreachable, NotAKey
from keswick.keystore.fs import FSStore
from keswick.keystore.memory import MemoryStore
from keswick.migration import Existing, Journal, Migration, MigrationError, Outcome, Report, _Entry, read_journal
from keswick.policy import PatternError

PLACE = "the target"
NAMES = [f"key-{number:02}" for number in range(40)]


def new_value() -> bytes:
    return SecretKey.generate("tests").encode()


class FaultyStore(MemoryStore):
    """A store in which `before` and `after` may raise, given the operation and the name; `reading` may garble."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda operation, name: None
        self.after: Callable[[str, str], None] = lambda operation, name: None
        self.reading: Callable[[str, bytes], bytes] = lambda name, value: value

    def create(self, name: str, value: bytes) -> None:
        self._note("create", name)
        super().create(name, value)
        self.after("create", name)

    def get(self, name: str) -> bytes:
        self._note("get", name)
        return self.reading(name, super().get(name))

    def delete(self, name: str) -> None:
        self._note("delete", name)
        super().delete(name)
        self.after("delete", name)

    def list(self, prefix: str) -> list[str]:
        self._note("list", prefix)
        return list(super().list(prefix))

    def _note(self, operation: str, name: str) -> None:
        self.calls.append((operation, name))
        self.before(operation, name)

    @property
    def values(self) -> dict[str, bytes]:
        return dict(self._values)


def fill(store: KeyStore, names: Iterable[str] = NAMES) -> dict[str, bytes]:
    values = {name: new_value() for name in names}
    for name, value in values.items():
        store.create(name, value)
    return values


def failing(
    operation: str, name: str, error: type[Exception] = KeyStoreError, times: int = 1
) -> Callable[[str, str], None]:
    """Raise the error at the first `times` calls of that operation for that name."""
    left = [times]

    def fail(called: str, with_name: str) -> None:
        if (called, with_name) == (operation, name) and left[0]:
            left[0] -= 1
            raise error("out of order")

    return fail


def overtaken_by(store: FaultyStore, value: bytes) -> Callable[[str, str], None]:
    """Somebody else creates each key, with that value, just before it is created."""

    def overtake(operation: str, name: str) -> None:
        if operation == "create":
            MemoryStore.create(store, name, value)

    return overtake


@pytest.fixture
def source() -> FaultyStore:
    return FaultyStore()


@pytest.fixture
def target() -> FaultyStore:
    return FaultyStore()


@pytest.fixture
def journal_path(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml.migration-journal"


def replace(source: KeyStore, target: KeyStore, journal_path: Path) -> Report:
    """Migrate with a journal, as the command does it."""
    with Journal(journal_path, PLACE) as journal:
        report = Migration(source, target, existing=Existing.REPLACE, journal=journal).run()
        if report.complete:
            journal.clear()
    return report


# --- copying ---


@pytest.mark.parametrize("kinds", ["memory memory", "fs fs", "memory fs", "fs memory"])
def test_all_keys_are_copied_byte_for_byte(kinds: str, tmp_path: Path) -> None:
    source, target = (
        FSStore(str(tmp_path / str(number))) if kind == "fs" else MemoryStore()
        for number, kind in enumerate(kinds.split())
    )
    values = fill(source, (f"key-{number}" for number in range(1100)))
    report = Migration(source, target).run()
    assert report.complete
    assert (report.total, report.read, report.migrated) == (1100, 1100, 1100)
    for store in (source, target):
        assert {name: store.get(name) for name in store.list("")} == values


def test_the_next_run_passes_over_what_is_there(source: FaultyStore, target: FaultyStore) -> None:
    fill(source)
    Migration(source, target, pattern="key-0*").run()
    target.calls.clear()
    report = Migration(source, target).run()
    assert report.complete
    assert (report.count(Outcome.COPIED), report.count(Outcome.SKIPPED)) == (30, 10)
    assert sorted(name for operation, name in target.calls if operation == "create") == NAMES[10:]
    assert target.values == source.values


def test_a_migration_of_nothing(source: FaultyStore, target: FaultyStore) -> None:
    report = Migration(source, target).run()
    assert report.complete
    assert report.outcomes == {}


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*", ["a", "ab", "abc", "b", "b.1 x"]),
        ("a*", ["a", "ab", "abc"]),
        ("?b", ["ab"]),
        ("[ab]", ["a", "b"]),
        ("[^a]*", ["b", "b.1 x"]),
        ("*c", ["abc"]),
        ("b", ["b"]),
        ("", []),
    ],
)
def test_a_pattern_selects_by_name(source: FaultyStore, target: FaultyStore, pattern: str, matched: list[str]) -> None:
    fill(source, ["a", "ab", "abc", "b", "b.1 x"])
    assert Migration(source, target, pattern=pattern).run().total == len(matched)
    assert sorted(target.values) == matched


def test_a_malformed_pattern_is_refused(source: FaultyStore, target: FaultyStore) -> None:
    with pytest.raises(PatternError):
        Migration(source, target, pattern="[a")


def test_what_is_no_key_stays_where_it_is(source: FaultyStore, target: FaultyStore) -> None:
    fill(source, ["key"])
    for name, value in (("empty", b""), ("password", b"hunter2"), ("json", b'{"bytes":"short"}')):
        source.create(name, value)
    report = Migration(source, target).run()
    assert report.complete
    assert report.names(Outcome.FOREIGN) == ["empty", "json", "password"]
    assert list(target.values) == ["key"]


# --- names that the target has already ---


def test_another_key_of_the_same_name_stops_before_anything_is_copied(source: FaultyStore, target: FaultyStore) -> None:
    values = fill(target, ["key-03", "key-20"])
    fill(source)
    report = Migration(source, target).run()
    assert not report.complete
    assert report.stopped.startswith("key already exists: ")
    assert "'key-03' and 1 more" in report.stopped
    assert "--merge" in report.stopped
    assert "--force" in report.stopped
    assert target.values == values


def test_a_key_that_appears_meanwhile_stops_as_well(source: FaultyStore, target: FaultyStore) -> None:
    fill(source, ["key"])
    other = new_value()
    target.before = overtaken_by(target, other)
    report = Migration(source, target).run()
    assert "key already exists: " in report.stopped
    assert target.values == {"key": other}


def test_a_key_that_appears_meanwhile_with_equal_bytes_is_passed_over(source: FaultyStore, target: FaultyStore) -> None:
    value = fill(source, ["key"])["key"]
    target.before = overtaken_by(target, value)
    report = Migration(source, target).run()
    assert report.complete
    assert report.outcomes == {"key": Outcome.SKIPPED}


def test_merge_keeps_what_the_target_has(source: FaultyStore, target: FaultyStore) -> None:
    kept = fill(target, ["key-03"])
    values = fill(source)
    report = Migration(source, target, existing=Existing.KEEP).run()
    assert not report.complete, "a key of the source is missing at the target"
    assert (report.names(Outcome.DIFFERS), report.stopped, report.failures) == (["key-03"], "", {})
    assert target.values == values | kept


def test_force_replaces_what_the_target_has(source: FaultyStore, target: FaultyStore, journal_path: Path) -> None:
    fill(target, [*NAMES[:10], "own"])
    values = fill(source)
    report = replace(source, target, journal_path)
    assert report.complete
    assert (report.count(Outcome.REPLACED), report.count(Outcome.COPIED)) == (10, 30)
    assert {name: target.values[name] for name in NAMES} == values
    assert "own" in target.values
    assert not journal_path.exists()


def test_force_never_replaces_what_is_no_key(source: FaultyStore, target: FaultyStore, journal_path: Path) -> None:
    fill(source, ["key", "password"])
    target.create("password", b"hunter2")
    report = replace(source, target, journal_path)
    assert list(report.failures) == ["password"]
    assert target.values["password"] == b"hunter2"
    assert target.values["key"] == source.values["key"]


def test_keys_are_replaced_with_a_journal_only(source: FaultyStore, target: FaultyStore, journal_path: Path) -> None:
    with pytest.raises(ValueError, match="takes a journal"):
        Migration(source, target, existing=Existing.REPLACE)
    with Journal(journal_path, PLACE) as journal, pytest.raises(ValueError, match="takes none"):
        Migration(source, target, journal=journal, dry_run=True)


@pytest.mark.parametrize("existing", Existing)
def test_a_dry_run_changes_nothing_and_tells_what_would_happen(
    source: FaultyStore, target: FaultyStore, existing: Existing
) -> None:
    values = fill(target, ["differs"])
    fill(source, ["differs", "equal", "new"])
    target.create("equal", source.get("equal"))
    source.create("foreign", b"junk")
    before = target.values
    dry = Migration(source, target, existing=existing, dry_run=True).run()
    assert {operation for operation, _ in target.calls[2:]} == {"list", "get"}
    assert target.values == before == values | {"equal": source.get("equal")}
    expected = {"equal": Outcome.SKIPPED}
    if existing is Existing.REFUSE:
        assert dry.stopped.startswith("key already exists")
        expected |= {"differs": Outcome.DIFFERS}
    else:
        replaced = Outcome.REPLACED if existing is Existing.REPLACE else Outcome.DIFFERS
        expected |= {"differs": replaced, "new": Outcome.COPIED, "foreign": Outcome.FOREIGN}
    assert dry.outcomes == expected


# --- bad days ---


@pytest.mark.parametrize("operation", ["create", "get"])
def test_a_key_that_fails_stops_no_other(source: FaultyStore, target: FaultyStore, operation: str) -> None:
    fill(source)
    target.before = failing(operation, "key-07")
    report = Migration(source, target).run()
    assert report.failures == {"key-07": "target: out of order"}
    assert not report.complete
    assert report.migrated == len(NAMES) - 1
    assert Migration(source, target).run().complete, "the next run finishes it"
    assert target.values == source.values


def test_a_key_that_cannot_be_read_stops_no_other(source: FaultyStore, target: FaultyStore) -> None:
    fill(source)
    source.before = failing("get", "key-07")
    report = Migration(source, target).run()
    assert report.failures == {"key-07": "source: out of order"}
    assert (report.read, report.migrated) == (39, 39)


def test_what_is_read_back_must_be_what_was_written(source: FaultyStore, target: FaultyStore) -> None:
    fill(source)
    target.reading = lambda name, value: value[:-1] if name == "key-07" else value
    report = Migration(source, target).run()
    assert report.failures == {"key-07": "target: what was read back is not what was written"}


def test_a_key_that_is_gone_in_the_end_is_told(source: FaultyStore, target: FaultyStore) -> None:
    fill(source)

    def lose(operation: str, name: str) -> None:
        if operation == "list":
            target._values.pop("key-07", None)

    target.before = lose
    report = Migration(source, target).run()
    assert report.failures == {"key-07": "it was at the target, and in the end it is not"}
    assert report.tried == report.total


def test_a_list_of_the_target_may_lag_behind(source: FaultyStore, target: FaultyStore) -> None:
    fill(source)
    target.list = lambda prefix: []  # type: ignore[method-assign]
    assert Migration(source, target).run().complete


def test_a_key_that_is_listed_a_moment_before_it_is_there_is_copied(source: FaultyStore, target: FaultyStore) -> None:
    fill(source)
    source.before = failing("get", "key-07", KeyNotFound, times=1)
    assert Migration(source, target).run().complete
    assert target.values == source.values


@pytest.mark.parametrize("dry_run", [False, True])
def test_what_is_listed_and_not_there_was_deleted(source: FaultyStore, target: FaultyStore, dry_run: bool) -> None:
    fill(source)
    source.before = failing("get", "key-07", KeyNotFound, times=2)
    report = Migration(source, target, dry_run=dry_run).run()
    assert report.complete
    assert report.names(Outcome.FOREIGN) == ["key-07"]
    assert report.foreign == {"key-07": "it is listed, but has no value, looked at twice: it was deleted there"}
    assert (report.read, report.migrated) == (40, 39)


def test_what_may_only_be_hidden_is_not_taken_for_deleted(source: FaultyStore, target: FaultyStore) -> None:
    fill(source)
    source.before = failing("get", "key-07", KeyNotShown, times=2)
    report = Migration(source, target).run()
    assert not report.complete
    assert "source: it is listed, but not found" in report.failures["key-07"]


def test_what_the_source_calls_no_key_stays_where_it_is(source: FaultyStore, target: FaultyStore) -> None:
    fill(source)
    source.before = failing("get", "key-07", NotAKey)
    report = Migration(source, target).run()
    assert report.complete
    assert report.foreign == {"key-07": "out of order"}
    assert (report.read, report.migrated) == (40, 39)


def test_what_the_target_calls_no_key_fails(source: FaultyStore, target: FaultyStore, journal_path: Path) -> None:
    fill(source, ["key"])
    fill(target, ["key"])
    before = target.values
    for existing in Existing:
        target.before = failing("get", "key", NotAKey)
        with Journal(journal_path, PLACE) as journal:
            report = Migration(source, target, existing=existing, journal=journal).run()
        assert report.failures == {"key": "target: out of order"}
        assert target.values == before


def test_what_nobody_foresaw_fails_one_key_and_shows_no_value(source: FaultyStore, target: FaultyStore) -> None:
    values = fill(source)

    def break_down(operation: str, name: str) -> None:
        if (operation, name) == ("create", "key-07"):
            raise TypeError(f"cannot take {values[name]!r}")

    target.before = break_down
    report = Migration(source, target).run()
    assert report.failures == {"key-07": "unexpected error TypeError"}


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_store_that_is_away_stops_the_migration(source: FaultyStore, target: FaultyStore, side: str) -> None:
    fill(source, (f"key-{number}" for number in range(1000)))
    store = source if side == "source" else target
    store.calls.clear()

    def go_away(operation: str, name: str) -> None:
        if len(store.calls) > 200:
            raise KeyStoreUnreachable("out of order")

    store.before = go_away
    report = Migration(source, target).run()
    assert report.stopped == f"{side}: out of order"
    assert not report.complete
    assert 0 < report.tried < report.total
    assert len(report.failures) <= 16, "only what was running"
    store.before = lambda operation, name: None
    assert Migration(source, target).run().complete
    assert target.values == source.values


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_store_that_cannot_list_stops_the_migration(source: FaultyStore, target: FaultyStore, side: str) -> None:
    fill(source)
    (source if side == "source" else target).before = failing("list", "")
    report = Migration(source, target).run()
    assert report.stopped == f"{side}: out of order"
    assert not target.values


def test_an_interrupt_lets_end_what_is_running(source: FaultyStore, target: FaultyStore) -> None:
    fill(source, (f"key-{number}" for number in range(1000)))
    running, go_on = threading.Barrier(17), threading.Event()

    def hold(operation: str, name: str) -> None:
        if operation == "create":
            if not go_on.is_set():
                running.wait()
            go_on.wait()

    def interrupt(report: Report) -> None:
        running.wait()
        threading.Timer(0.1, go_on.set).start()
        raise KeyboardInterrupt

    target.before = hold
    report = Migration(source, target).run(interrupt)
    assert report.stopped.startswith("interrupted")
    assert report.migrated == len(target.values) == 16
    assert report.tried == 16


def test_what_shows_the_progress_may_fail(source: FaultyStore, target: FaultyStore) -> None:
    fill(source)
    ticked = threading.Event()

    def hold(operation: str, name: str) -> None:
        if operation == "create":
            ticked.wait()

    def break_down(report: Report) -> None:
        ticked.set()
        raise BrokenPipeError

    target.before = hold
    with pytest.raises(BrokenPipeError):
        Migration(source, target).run(break_down)


# --- the journal ---


def test_the_value_is_on_the_disk_before_it_is_deleted(
    source: FaultyStore, target: FaultyStore, journal_path: Path
) -> None:
    old = fill(target)
    fill(source)
    seen: dict[str, bytes] = {}

    def look(operation: str, name: str) -> None:
        if operation == "delete":
            seen[name] = read_journal(journal_path, PLACE)[name]
            assert stat.S_IMODE(journal_path.stat().st_mode) == 0o600

    target.before = look
    assert replace(source, target, journal_path).complete
    assert seen == old


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("error", [KeyStoreError, KeyStoreUnreachable, RuntimeError])
@pytest.mark.parametrize("operation", ["delete", "create"])
def test_a_value_is_put_back_when_its_replacement_fails(
    source: FaultyStore, target: FaultyStore, journal_path: Path, operation: str, error: type[Exception], before: bool
) -> None:
    old = fill(target, ["key"])
    new = fill(source, ["key"])
    setattr(target, "before" if before else "after", failing(operation, "key", error))
    report = replace(source, target, journal_path)
    if (operation, before) == ("create", False):  # it was done, whatever the store said
        assert report.complete
        assert target.values == new
        return
    assert list(report.failures) == ["key"]
    assert target.values == old
    assert read_journal(journal_path, PLACE) == old
    assert replace(source, target, journal_path).complete
    assert target.values == new
    assert not journal_path.exists()


def test_a_value_is_put_back_when_something_else_was_written(
    source: FaultyStore, target: FaultyStore, journal_path: Path
) -> None:
    old = fill(target, ["key"])
    new = fill(source, ["key"])["key"]
    target.reading = lambda name, value: value[:-1] if value == new else value
    report = replace(source, target, journal_path)
    assert report.failures == {"key": "target: what was read back is not what was written"}
    assert target.values == old


def test_the_key_of_somebody_else_is_not_put_back_over(
    source: FaultyStore, target: FaultyStore, journal_path: Path
) -> None:
    old, other = fill(target, ["key"]), new_value()
    fill(source, ["key"])
    target.before = overtaken_by(target, other)
    report = replace(source, target, journal_path)
    assert "somebody else" in report.failures["key"]
    assert target.values == {"key": other}
    assert read_journal(journal_path, PLACE) == old


def test_what_cannot_be_put_back_is_by_the_next_run(
    source: FaultyStore, target: FaultyStore, journal_path: Path
) -> None:
    old = fill(target, NAMES[:3])
    fill(source)
    target.before = failing("create", "key-01", times=2)
    report = replace(source, target, journal_path)
    assert "its old value, now in the journal, could not be put back" in report.failures["key-01"]
    assert "key-01" not in target.values
    with Journal(journal_path, PLACE) as journal:
        report = Migration(source, target, existing=Existing.KEEP, journal=journal).run()
    assert report.restored == 1
    assert target.values["key-01"] == old["key-01"]


@pytest.mark.parametrize("left", ["nothing", "half a key", "a key"])
def test_a_run_that_was_killed_is_undone_where_a_key_is_missing(
    source: FaultyStore, target: FaultyStore, journal_path: Path, left: str
) -> None:
    value, newer = new_value(), new_value()
    with Journal(journal_path, PLACE) as journal:
        journal.record("key", newer)
        journal.record("key", value)
    if left != "nothing":
        target.create("key", newer if left == "a key" else newer[:50])
    with Journal(journal_path, PLACE) as journal:
        report = Migration(source, target, journal=journal).run()
    assert report.complete
    assert report.restored == (left != "a key")
    assert target.values == {"key": newer if left == "a key" else value}


def test_nothing_is_copied_while_a_key_cannot_be_restored(
    source: FaultyStore, target: FaultyStore, journal_path: Path
) -> None:
    fill(source)
    with Journal(journal_path, PLACE) as journal:
        journal.record("key-01", new_value())
    target.before = failing("create", "key-01")
    report = replace(source, target, journal_path)
    assert report.failures == {"key-01": "target: out of order"}
    assert report.stopped
    assert not target.values
    assert journal_path.exists()


def test_a_journal_is_for_one_migration_at_a_time(journal_path: Path) -> None:
    with Journal(journal_path, PLACE):
        with pytest.raises(MigrationError, match="another migration to this target is running"):
            Journal(journal_path, PLACE)
        assert journal_path.exists()
    assert not journal_path.exists(), "nothing was in it"
    with Journal(journal_path, PLACE):
        pass


def test_a_journal_of_another_store_is_refused(journal_path: Path) -> None:
    with Journal(journal_path, "fs /a") as journal:
        journal.record("key", b"value")
    with pytest.raises(MigrationError, match=r"another key store \(fs /a\)"):
        Journal(journal_path, "fs /b")
    assert read_journal(journal_path, "fs /a") == {"key": b"value"}


def test_a_journal_that_others_can_read_is_closed_to_them(journal_path: Path) -> None:
    journal_path.touch(mode=0o644)
    with Journal(journal_path, PLACE) as journal:
        journal.record("key", b"value")
    assert stat.S_IMODE(journal_path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe", "socket", "folder", "another user's"])
def test_what_others_may_have_put_there_is_no_journal(
    journal_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whoever can write into it could make keys, whoever can read it would have some; and nothing else is changed."""
    other = tmp_path / "other"
    if kind != "dangling link":
        other.write_text("precious")
        other.chmod(0o644)
    match kind:
        case "link" | "dangling link":
            journal_path.symlink_to(other)
        case "hard link":
            journal_path.hardlink_to(other)
        case "pipe":
            os.mkfifo(journal_path)
        case "socket":
            os.mknod(journal_path, stat.S_IFSOCK | 0o600)
        case "folder":
            journal_path.mkdir()
        case _:
            with Journal(journal_path, PLACE) as journal:
                journal.record("evil", b"value")
            monkeypatch.setattr("keswick.migration.os.geteuid", lambda: journal_path.stat().st_uid + 1)
    for read in (Journal, read_journal):
        with pytest.raises(MigrationError, match=f"'{journal_path}' is no journal that this user has made"):
            read(journal_path, PLACE)
    if kind != "dangling link":
        assert (other.read_text(), stat.S_IMODE(other.stat().st_mode)) == ("precious", 0o644)
    assert other.exists() == (kind != "dangling link")


def test_half_a_last_line_is_dropped_wherever_it_was_cut(journal_path: Path) -> None:
    """It was not on the disk as a whole, so its key was not touched."""
    with Journal(journal_path, PLACE) as journal:
        journal.record("one", b"1")
        journal.record("two", b"2")
    whole = journal_path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        journal_path.write_bytes(whole[:cut])
        with Journal(journal_path, PLACE) as journal:
            assert journal.entries == {"one": b"1"}
            journal.record("three", b"3")
        assert read_journal(journal_path, PLACE) == {"one": b"1", "three": b"3"}


def test_a_last_line_whose_beginning_never_came_to_the_disk_is_dropped(journal_path: Path) -> None:
    with Journal(journal_path, PLACE) as journal:
        journal.record("one", b"1")
    with journal_path.open("ab") as file:
        file.write(b"\0" * 50 + b'"}\n')
    assert read_journal(journal_path, PLACE) == {"one": b"1"}


def test_damage_before_the_last_line_is_an_error(journal_path: Path) -> None:
    with Journal(journal_path, PLACE) as journal:
        journal.record("one", b"1")
        journal.record("two", b"2")
    whole = journal_path.read_bytes()
    for damaged in (b"x" + whole, whole[:10] + b"\n" + whole, whole.replace(b'"', b"'", 1)):
        journal_path.write_bytes(damaged)
        with pytest.raises(MigrationError, match="line 1 of this journal is damaged"):
            Journal(journal_path, PLACE)
        assert journal_path.read_bytes() == damaged


def test_a_journal_that_cannot_be_written_deletes_nothing(
    source: FaultyStore, target: FaultyStore, journal_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = fill(target, NAMES[:5])
    fill(source)
    writes = []

    def write(file: int, data: bytes) -> int:
        writes.append(file)
        return original(file, data if len(writes) < 3 else data[:20])  # a disk that is full

    original = os.write
    monkeypatch.setattr("keswick.migration.os.write", write)
    report = replace(source, target, journal_path)
    monkeypatch.undo()
    assert len(report.failures) == 3
    assert all("cannot be written, so nothing is deleted: No space left" in why for why in report.failures.values())
    assert {name: target.values[name] for name in report.failures} == {name: old[name] for name in report.failures}
    assert replace(source, target, journal_path).complete
    assert target.values == source.values


def test_values_are_in_no_text(journal_path: Path) -> None:
    assert "secret" not in repr(_Entry(PLACE, "key", b"secret"))


_LINES = st.one_of(
    st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")),
    st.builds(
        lambda target, name, value: json.dumps({"target": target, "name": name, "value": value}).encode(),
        st.sampled_from([PLACE, "another"]),
        st.text(max_size=5) | st.none(),
        st.text(max_size=8) | st.integers(),
    ),
)


@given(lines=st.lists(_LINES, max_size=5), end=st.binary(max_size=20))
def test_no_journal_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bytes) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    path.write_bytes(b"\n".join([*lines, end]))
    try:
        entries = read_journal(path, PLACE)
    except MigrationError:
        return
    assert len(entries) <= len(lines) + 1
    with Journal(path, PLACE) as journal:
        assert journal.entries == entries
        journal.record("one more", b"value")
    assert read_journal(path, PLACE) == entries | {"one more": b"value"}
