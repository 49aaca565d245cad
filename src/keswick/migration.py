"""Moving keys from one key store to another: all of them, byte for byte, and so that a kill at any moment loses none.

A key is copied with a create, which never overwrites, and read back before it counts. Whoever starts over finds what
was copied already, equal, and passes over it. Only a key that is to be replaced has to be deleted first: its value is
then on the disk in a journal, from which it is put back if anything goes wrong, by this run or, after a kill, by the
next.

What is not a stored key is left alone on both sides: other programs may keep things in the same place.
"""

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType

import msgspec

from keswick import policy
from keswick.crypto import stored
from keswick.files import sync_folder
from keswick.keystore import (
    KeyExists,
    KeyNotFound,
    KeyNotShown,
    KeyStore,
    KeyStoreError,
    KeyStoreUnreachable,
    NotAKey,
)

THREADS = 16
"""Keys that are on their way at once."""

_TICK = 0.1
"""Seconds between two reports of the progress."""


_MISREAD = "what was read back is not what was written"


class MigrationError(Exception):
    """The migration cannot start, in words for an operator."""


class Existing(Enum):
    """What becomes of a key if the target has another one of the same name."""

    REFUSE = "stop"
    KEEP = "keep the target's"
    REPLACE = "replace the target's"


class Outcome(Enum):
    """What became of one name of the source. In a dry run: what would become of it."""

    COPIED = "copied"
    REPLACED = "replaced"
    SKIPPED = "the target had it already, with equal bytes"
    DIFFERS = "the target has another key of this name, and keeps it"
    FOREIGN = "it is no key"


@dataclass
class Report:
    """How far a migration is, or how it ended."""

    total: int = 0
    """Names of the source that match the pattern."""
    read: int = 0
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By name; a name that was not tried, or failed, is not in it."""
    foreign: dict[str, str] = field(default_factory=dict)
    """By name: in words, why it is no key; a value that is none needs none."""
    failures: dict[str, str] = field(default_factory=dict)
    """By name: in words, why it is not at the target. Sorted in the end."""
    restored: int = 0
    """Keys that a run which was killed had deleted, and that are back."""
    stopped: str = ""
    """Why the migration ended before it was through, in words."""

    def count(self, outcome: Outcome) -> int:
        return list(self.outcomes.values()).count(outcome)

    def names(self, outcome: Outcome) -> list[str]:
        """Sorted."""
        return sorted(name for name, found in self.outcomes.items() if found is outcome)

    @property
    def migrated(self) -> int:
        return self.count(Outcome.COPIED) + self.count(Outcome.REPLACED)

    @property
    def tried(self) -> int:
        return len(self.outcomes) + len(self.failures)

    @property
    def complete(self) -> bool:
        """Whether every key of the source is now at the target."""
        return not (self.stopped or self.failures or self.count(Outcome.DIFFERS)) and self.tried == self.total


class Migration:
    """Copies those keys of `source` whose names match the glob `pattern` to `target`. For one run.

    With a journal, what a run that was killed has deleted is restored first; to replace keys takes one. A dry run reads
    and compares everything and changes nothing. Raises PatternError for a malformed pattern.
    """

    def __init__(
        self,
        source: KeyStore,
        target: KeyStore,
        *,
        pattern: str = "*",
        existing: Existing = Existing.REFUSE,
        journal: "Journal | None" = None,
        dry_run: bool = False,
    ) -> None:
        if (journal is not None) if dry_run else (journal is None and existing is Existing.REPLACE):
            raise ValueError("to replace keys takes a journal, and a dry run takes none")
        self.report = Report()
        self._source = source
        self._target = target
        self._matches = policy.glob(pattern)
        self._existing = existing
        self._journal = journal
        self._dry_run = dry_run
        self._at_target: set[str] = set()
        self._stopping = threading.Event()
        self._changing = threading.Lock()

    def run(self, tick: Callable[[Report], None] = lambda report: None) -> Report:
        """Migrate, and call `tick` several times a second on this thread.

        A key that fails stops no other. A store that is away, an interrupt (KeyboardInterrupt) and an exception of
        `tick` stop the migration as soon as what is running has ended; the last is raised again.
        """
        report = self.report
        try:
            self._restore()
            with _side("source"):
                names = sorted(set(filter(self._matches, self._source.list(""))))
            with _side("target"):
                self._at_target = set(self._target.list(""))
            report.total = len(names)
            # What is there already first: where it must be equal, and is not, nothing is copied at all.
            self._work([name for name in names if name in self._at_target], tick)
            self._refuse_differing()
            self._work([name for name in names if name not in self._at_target], tick)
            self._refuse_differing()
            if not self._dry_run:
                self._check_list()
        except KeyStoreError as error:
            self._stop(str(error))
        except _Stopped:
            pass
        except KeyboardInterrupt:
            self._stop("interrupted; start the same migration again to go on")
        with self._changing:
            report.failures = dict(sorted(report.failures.items()))
        return report

    def _work(self, names: Sequence[str], tick: Callable[[Report], None]) -> None:
        rest = iter(names)
        with ThreadPoolExecutor(max(1, min(THREADS, len(names)))) as pool:
            try:
                running = [pool.submit(self._drain, rest) for _ in range(min(THREADS, len(names)))]
                while wait(running, _TICK).not_done:
                    tick(self.report)
                for worker in running:
                    worker.result()
            except BaseException:
                self._stopping.set()
                raise
        if self._stopping.is_set():
            raise _Stopped

    def _drain(self, names: Iterator[str]) -> None:
        while not self._stopping.is_set():
            with self._changing:
                name = next(names, None)
            if name is None:
                return
            try:
                outcome = self._migrate(name)
                with self._changing:
                    self.report.outcomes[name] = outcome
            except Exception as error:
                self._fail(name, error)

    def _migrate(self, name: str) -> Outcome:
        """Bring one key to the target, or raise why it is not there."""
        try:
            value = self._read(name)
        except _Foreign as error:
            with self._changing:
                self.report.read += 1
                self.report.foreign[name] = str(error)
            return Outcome.FOREIGN
        with self._changing:
            self.report.read += 1
        with _side("target"):
            held = _get(self._target, name) if name in self._at_target else None
            if held is None and not self._dry_run:
                try:
                    self._target.create(name, value)
                except KeyExists:
                    held = self._target.get(name)
                else:
                    if _get(self._target, name) != value:
                        raise KeyStoreError(_MISREAD)
        if held is None:
            return Outcome.COPIED
        if held == value:
            return Outcome.SKIPPED
        if self._existing is not Existing.REPLACE:
            return Outcome.DIFFERS
        self._replace(name, held, value)
        return Outcome.REPLACED

    def _read(self, name: str) -> bytes:
        """The key of that name at the source. Raises _Foreign where there is none."""
        with _side("source"):
            try:
                value = _get(self._source, name)
                if value is None:  # once more, since a key may be listed a moment before it can be read
                    value = self._source.get(name)
            except KeyNotShown:
                raise KeyStoreError(
                    "it is listed, but not found, which is said of what may not be read, too: was it deleted, or does "
                    "the configuration's user lack the right?"
                ) from None
            except KeyNotFound:
                raise _Foreign("it is listed, but has no value, looked at twice: it was deleted there") from None
            except NotAKey as error:
                raise _Foreign(str(error)) from error
        if not _is_key(value):
            raise _Foreign
        return value

    def _replace(self, name: str, old: bytes, new: bytes) -> None:
        if not _is_key(old):
            raise KeyStoreError("the target has something else under this name that is no key: move it away")
        if self._journal is None:  # a dry run
            return
        self._journal.record(name, old)
        with _side("target"):
            try:
                self._target.delete(name)
                self._target.create(name, new)
                trouble: Exception = KeyStoreError(_MISREAD)
            except Exception as error:
                trouble = error
            # What counts is what the target holds now, whatever it said on the way.
            try:
                held = _get(self._target, name)
                if held == new:
                    return
                if held is None or not isinstance(trouble, KeyExists):  # else it is somebody else's
                    self._put_back(name, old)
            except Exception as error:
                kind = KeyStoreUnreachable if _is_away(trouble) or _is_away(error) else KeyStoreError
                raise kind(
                    f"{_words(trouble)}; its old value, now in the journal, could not be put back: {_words(error)}"
                ) from error
            raise trouble

    def _put_back(self, name: str, old: bytes) -> None:
        held = _get(self._target, name)
        if held == old:
            return
        if held is not None:
            self._target.delete(name)
        self._target.create(name, old)
        if _get(self._target, name) != old:
            raise KeyStoreError(_MISREAD)

    def _restore(self) -> None:
        """Put back what a run that was killed has deleted, or left half written."""
        if self._journal is None:
            return
        for name, old in sorted(self._journal.entries.items()):
            try:
                with _side("target"):
                    held = _get(self._target, name)
                    if held is None or not _is_key(held):
                        self._put_back(name, old)
                        self.report.restored += 1
            except Exception as error:
                self._fail(name, error)
        if self.report.failures:
            self._stop("a key that an earlier run had deleted could not be put back")
            raise _Stopped

    def _refuse_differing(self) -> None:
        if self._existing is Existing.REFUSE and (names := self.report.names(Outcome.DIFFERS)):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._stop(
                f"key already exists: the target has other keys under the same names, '{names[0]}'{more}. "
                "'--merge' keeps the target's, '--force' replaces them"
            )
            raise _Stopped

    def _check_list(self) -> None:
        """Whether every key is there in the end. A list may lag behind, so a name that it lacks is asked for."""
        there = {Outcome.COPIED, Outcome.REPLACED, Outcome.SKIPPED, Outcome.DIFFERS}
        with _side("target"):
            listed = set(self._target.list(""))
            for name in sorted(name for name, outcome in self.report.outcomes.items() if outcome in there):
                if name not in listed and _get(self._target, name) is None:
                    self._fail(name, KeyStoreError("it was at the target, and in the end it is not"))

    def _fail(self, name: str, error: Exception) -> None:
        with self._changing:
            self.report.outcomes.pop(name, None)
            self.report.failures[name] = _words(error)
        if _is_away(error):
            self._stop(_words(error))

    def _stop(self, reason: str) -> None:
        """What is running ends, nothing more begins."""
        with self._changing:
            self.report.stopped = self.report.stopped or reason
        self._stopping.set()


class _Stopped(Exception):
    """The report says why."""


class _Foreign(Exception):
    """What the source has under a name is no key: why, in words, where the store has some."""


class Journal:
    """Values that a migration is about to delete at the target, until it is wholly done: a file for its owner alone.

    A line is a JSON object: the store that it is about, the key's name, and the value in base64. It is on the disk
    before `record` returns, and so before anything is deleted. Half a last line therefore is about a key that was not
    touched, and is dropped; any other line that cannot be read is an error.

    `target` says which store it is. The file is locked and removed in the end if nothing is in it. Raises
    MigrationError when another migration has it, or it is damaged, about another store or of another user; OSError when
    it cannot be made.
    """

    def __init__(self, path: Path, target: str) -> None:
        self.path = path
        self._target = target
        self._writing = threading.Lock()
        self._trouble = ""
        self._file = _open_locked(path)
        try:
            data = _read(self._file)
            self.entries, self._size = _parse(path, data, target)
            """The values by name, as they were found."""
            if self._size < len(data):
                os.ftruncate(self._file, self._size)
                os.fsync(self._file)
            sync_folder(path.parent)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with self._writing:
            self._trouble = "the journal is closed"
            if self.is_empty:
                os.unlink(self.path)
                sync_folder(self.path.parent)
            os.close(self._file)

    @property
    def is_empty(self) -> bool:
        return self._size == 0

    def record(self, name: str, value: bytes) -> None:
        """Bring a value to the disk. Raises MigrationError, and from then on always."""
        line = msgspec.json.encode(_Entry(self._target, name, value)) + b"\n"
        with self._writing:
            if self._trouble:
                raise MigrationError(self._trouble)
            try:
                written = os.write(self._file, line)
                self._size += written
                if written < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file)
            except OSError as error:
                # Half a line must stay the last one, and after a failed sync nobody knows what is on the disk.
                self._trouble = f"the journal '{self.path}' cannot be written, so nothing is deleted: {error.strerror}"
                raise MigrationError(self._trouble) from None

    def clear(self) -> None:
        """Nothing in it is needed any more."""
        with self._writing:
            os.ftruncate(self._file, 0)
            self._size = 0


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    target: str
    name: str
    value: bytes

    def __repr__(self) -> str:
        return f"<_Entry {self.name!r}>"


def read_journal(path: Path, target: str) -> dict[str, bytes]:
    """What a run that was killed has left: values by name. Nothing is locked or changed. Raises MigrationError."""
    try:
        file = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return {}
    try:
        return _parse(path, _read(file), target)[0]
    finally:
        os.close(file)


def _parse(path: Path, data: bytes, target: str) -> tuple[dict[str, bytes], int]:
    """The last value of each name, and how many bytes stand before half a line."""
    *lines, rest = data.split(b"\n")
    entries: dict[str, bytes] = {}
    size = 0
    for number, line in enumerate(lines, 1):
        try:
            entry = msgspec.json.decode(line, type=_Entry)
        except msgspec.DecodeError:
            if number == len(lines) and not rest:  # its end came to the disk before its beginning
                break
            raise MigrationError(
                f"{path}: line {number} of this journal is damaged: the values in the others are keys of the target "
                "that may be missing there; see to them, then move the file away"
            ) from None
        if entry.target != target:
            raise MigrationError(
                f"{path}: this journal of an unfinished migration is about another key store ({entry.target}): "
                "finish that one, or move the file away"
            )
        entries[entry.name] = entry.value
        size += len(line) + 1
    return entries, size


def _read(file: int) -> bytes:
    with open(file, "rb", closefd=False) as reader:
        return reader.read()


def _open(path: Path, flags: int) -> int:
    """Raises MigrationError for what others may have put there: whoever writes a journal makes keys, whoever reads it
    has some, and what a link leads to is not to be changed."""
    try:
        file = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        found = os.fstat(file)
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink <= 1:
            return file
        os.close(file)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
    raise MigrationError(
        f"'{path}' is no journal that this user has made, and is not used: go on as the user who made it, or see what "
        "it is and move it away"
    )


def _open_locked(path: Path) -> int:
    while True:
        file = _open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(file, 0o600)
            if os.fstat(file).st_nlink:
                return os.dup(file)  # which has the lock, too
            # Whoever had it has removed it just now.
        except BlockingIOError:
            raise MigrationError(f"another migration to this target is running: it holds '{path}'") from None
        finally:
            os.close(file)


def _get(store: KeyStore, name: str) -> bytes | None:
    try:
        return store.get(name)
    except KeyNotFound:
        return None


def _is_key(value: bytes) -> bool:
    try:
        stored.decode(value)
    except stored.KeyFormatError:
        return False
    return True


@contextmanager
def _side(side: str) -> Iterator[None]:
    """Errors of a store say which of the two it is."""
    try:
        yield
    except KeyStoreUnreachable as error:
        raise KeyStoreUnreachable(f"{side}: {error}") from error
    except KeyStoreError as error:
        raise KeyStoreError(f"{side}: {error}") from error


def _is_away(error: Exception) -> bool:
    return isinstance(error, KeyStoreUnreachable)


def _words(error: Exception) -> str:
    """For an operator. What nobody foresaw may show a value in its text, so only its kind is told."""
    match error:
        case KeyStoreError() | MigrationError():
            return str(error)
        case KeyExists() | KeyNotFound():
            return "somebody else made or deleted a key of this name at the same time"
        case _:
            return f"unexpected error {type(error).__name__}"
