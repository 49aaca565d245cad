"""A backup of an encrypted folder: its header and its sealed files, as they are, in one file with a checksum.

Nothing is opened for it, so that no seal is needed, and a backup is worth to others what the folder is. docs/formats.md
describes the format.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from keswick.files import Draft, NewFile, new_file, sync_folder, write_files
from keswick.keystore import KeyNotFound, KeyStoreError, KeyStoreUnreachable
from keswick.keystore.fs import MAX_VALUE, FSStore, make_folder
from keswick.keystore.sealing import RootKey, SealedValueError, check_form, is_sealed
from keswick.keystore.seals import header
from keswick.names import is_stored_name

MAGIC = b"\x89KBK\r\n\x1a\n"
VERSION = 1

_ENTRY = struct.Struct(">HI")
_END = struct.Struct(">HI")
_CHECKSUM_SIZE = 32
_BESIDE = ".kes-restore-"


class BackupError(Exception):
    """Says what is wrong with a backup, or with a folder, and what to do."""


class Report(NamedTuple):
    """What became of a folder's files."""

    names: list[str]
    """Of the keys in the backup."""
    foreign: list[str]
    """Files that are not sealed, and were left out."""
    failed: dict[str, str]
    """Keys that were left out because they are damaged or cannot be read, and why."""


Open = Callable[[header.Header], RootKey]
"""Opens the seal of a header, so that each key can be tried. Raises KeyStoreError."""


# --- to a file ---


def make(folder: str, target: Path, *, overwrite: bool = False, open_seal: Open | None = None) -> Report:
    """Write the backup of an encrypted folder. It gets its name when all of it is on the disk.

    A server may use the folder meanwhile: files there are never changed, and appear whole. What is there is not
    overwritten by a backup that lacks keys. Raises BackupError, KeyStoreError, FileExistsError unless `overwrite`, and
    OSError.
    """
    before = _header_of(folder)
    files = FSStore(folder)
    report = Report([], [], {})
    if target.parent.resolve() == Path(folder).resolve():
        raise BackupError(f"a backup in the folder itself would be taken for a key: write '{target}' elsewhere")
    with _opened(folder, before, open_seal) as key, new_file(target, overwrite=overwrite) as draft:
        writer = _Writer(draft)
        writer.entry(header.FILE, before)
        for name in sorted(files.list(""), key=str.encode):
            try:
                content = files.get(name)
                if not is_sealed(content):
                    report.foreign.append(name)
                    continue
                _check(name, content, key)
            except KeyNotFound:
                continue  # deleted meanwhile
            except KeyStoreUnreachable:
                raise
            except KeyStoreError as error:
                report.failed[name] = str(error)
                continue
            except SealedValueError as error:
                report.failed[name] = f"it {error}"
                continue
            writer.entry(name, content)
            report.names.append(name)
        if _header_of(folder) != before:
            raise BackupError(f"the header of '{folder}' was changed meanwhile: start again")
        if report.failed and os.path.lexists(target):
            raise BackupError(
                f"'{target}' is kept as it is, for it may be the last backup with all keys: "
                f"{_failures(report.failed)}. Write the new one to another file"
            )
        writer.end(len(report.names))
    return report


def _header_of(folder: str) -> bytes:
    path = Path(folder, header.FILE)
    try:
        with path.open("rb") as file:
            content = file.read(header.MAX_SIZE + 1)
        header.decode(content)
    except (FileNotFoundError, NotADirectoryError):
        raise BackupError(
            f"'{folder}' is no encrypted folder: it has no header '{header.FILE}'. One that was lost is in an earlier "
            "backup; for a new folder, a server makes one when it starts"
        ) from None
    except header.HeaderError as error:
        raise BackupError(f"'{path}' {error}") from None
    return content


class _Writer:
    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._hash = hashlib.sha256()
        self._write(MAGIC + bytes([VERSION]))

    def entry(self, name: str, content: bytes) -> None:
        encoded = name.encode()
        self._write(_ENTRY.pack(len(encoded), len(content)) + encoded + content)

    def end(self, count: int) -> None:
        self._write(_END.pack(0, count))
        self._draft.write(self._hash.digest())

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._draft.write(data)


# --- from a file ---


def check(backup: Path, open_seal: Open | None = None) -> list[str]:
    """The names of the keys in a backup, which is read through. With `open_seal` each of them is opened.

    Raises BackupError, also when one does not open, KeyStoreError, and OSError.
    """
    with backup.open("rb") as file:
        begin, entries = _read(backup, file)
        with _opened(str(backup), begin, open_seal) as key:
            names, failed = [], {}
            for name, content in entries:
                names.append(name)
                try:
                    _check(name, content, key)
                except SealedValueError as error:
                    failed[name] = str(error)
    if failed:
        raise BackupError(f"'{backup}': {_failures(failed)}")
    return names


def restore(backup: Path, folder: str) -> None:
    """Make the folder that was backed up, all of it or nothing: it is made beside, and then renamed.

    What is there has to be an empty folder, whose owner and mode stay, or nothing. Raises BackupError, KeyStoreError
    and OSError.
    """
    target = Path(os.path.realpath(folder))
    former = check_target(folder)
    with backup.open("rb") as file:
        begin, entries = _read(backup, file)
        with _beside(target) as made:
            write_files(NewFile(made / header.FILE, begin.decode(), secret=True))
            files = FSStore(str(made))
            for name, content in entries:
                try:
                    check_form(content)
                except SealedValueError as error:
                    raise BackupError(f"'{backup}': '{name}' {error}") from None
                files.create(name, content)
            if former is not None:
                _give_to(made, former)
            try:
                os.rename(made, target)
            except OSError as error:
                raise _refused(folder, error) from error
            sync_folder(target.parent)


def check_target(folder: str) -> os.stat_result | None:
    """What a folder is that a backup may be restored to; None if it is not there. Raises BackupError."""
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is not None:
                raise _not_empty(folder)
        if os.path.ismount(os.path.realpath(folder)):
            raise _mounted(folder)
        return os.stat(folder)
    except FileNotFoundError:
        if os.path.lexists(folder):
            raise BackupError(f"'{folder}' is a link that leads nowhere: make the folder that it names") from None
        return None
    except OSError as error:
        raise BackupError(f"'{folder}' cannot be restored to: {error.strerror}") from error


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new folder beside the target, to be renamed; removed when the block fails. What a restore that was killed has
    left there is removed, too."""
    made, lock = _locked_folder(target)
    try:
        _remove_stale(target.parent)
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """A new folder beside the target, and the lock by which another restore sees that it is in use."""
    while True:
        made = target.parent / f"{_BESIDE}{secrets.token_hex(8)}"
        try:
            make_folder(made)
        except OSError as error:
            raise BackupError(
                f"'{target}' is made beside its place first, and '{target.parent}' cannot be written to "
                f"({error.strerror}): let the user of this process do so, or restore as root"
            ) from error
        with suppress(FileNotFoundError):  # another restore has taken it for one that was left, before it was locked
            lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if made.exists():
                return made, lock
            os.close(lock)


def _remove_stale(parent: Path) -> None:
    for path in parent.glob(f"{_BESIDE}*"):
        with suppress(OSError):  # somebody else's, or it is in use
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path)
            finally:
                os.close(handle)


def _give_to(made: Path, former: os.stat_result) -> None:
    """The owner and the mode of the folder in whose place it comes."""
    try:
        for path in (*made.iterdir(), made):
            os.chown(path, former.st_uid, former.st_gid)
    except OSError as error:
        if former.st_uid != os.geteuid():  # a group does not matter that much
            raise BackupError(
                f"the folder belongs to the user {former.st_uid}: restore as that user, or as root ({error.strerror})"
            ) from error
    made.chmod(stat.S_IMODE(former.st_mode))


def _refused(folder: str, error: OSError) -> BackupError:
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return _not_empty(folder)
    if error.errno in (errno.EBUSY, errno.EXDEV):
        return _mounted(folder)
    return BackupError(f"'{folder}' cannot be made: {error.strerror}")


def _mounted(folder: str) -> BackupError:
    return BackupError(
        f"'{folder}' is where a file system is mounted, so nothing can take its place at once: let 'path' name a "
        "folder within it"
    )


def _not_empty(folder: str) -> BackupError:
    return BackupError(
        f"'{folder}' is not empty, and what is there is not overwritten: move it away, or name another folder"
    )


def _read(path: Path, file: BinaryIO) -> tuple[bytes, Iterator[tuple[str, bytes]]]:
    """The header, and name and content of each key file. They are worth nothing before all have come."""
    reader = _Reader(path, file)
    start = file.read(len(MAGIC) + 1)
    if start[: len(MAGIC)] != MAGIC:
        raise BackupError(f"'{path}' is no backup of an encrypted folder: name what 'kes backup' has written")
    if start[len(MAGIC) :] not in (b"", bytes([VERSION])):
        raise BackupError(f"'{path}' is of version {start[-1]}: a newer release of Keswick reads it")
    reader.hash.update(start)
    size, length = _ENTRY.unpack(reader.take(_ENTRY.size))
    if size != len(header.FILE) or length > header.MAX_SIZE or reader.take(size) != header.FILE.encode():
        raise reader.damaged()
    begin = reader.take(length)
    try:
        header.decode(begin)
    except header.HeaderError as error:
        raise BackupError(f"'{path}': its header {error}") from None
    return begin, reader.entries()


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self.hash = hashlib.sha256()

    def entries(self) -> Iterator[tuple[str, bytes]]:
        count, last = 0, b""
        while True:
            size, length = _ENTRY.unpack(self.take(_ENTRY.size))
            if not size:
                break
            if size > 255 or length > MAX_VALUE:
                raise self.damaged()
            encoded = self.take(size)
            if encoded <= last:
                raise self.damaged()
            count, last = count + 1, encoded
            yield self._name(encoded), self.take(length)
        found = self._file.read(_CHECKSUM_SIZE + 1)
        if len(found) < _CHECKSUM_SIZE:
            raise self._cut_off()
        if length != count or found != self.hash.digest():
            raise self.damaged()

    def take(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise self._cut_off()
        self.hash.update(data)
        return data

    def damaged(self) -> BackupError:
        return BackupError(f"'{self._path}' is damaged, its checksum or form is wrong: get it anew, or another backup")

    def _cut_off(self) -> BackupError:
        return BackupError(f"'{self._path}' has been cut off: get it anew, or another backup")

    def _name(self, encoded: bytes) -> str:
        try:
            name = encoded.decode()
        except UnicodeDecodeError:
            raise self.damaged() from None
        if name.startswith(".") or not is_stored_name(name):
            raise self.damaged()
        return name


# --- both ---


def _failures(reasons: Mapping[str, str]) -> str:
    """By name, in few words."""
    name = min(reasons)
    more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    return f"'{name}' {reasons[name]}{more}"


def _check(name: str, content: bytes, key: RootKey | None) -> None:
    """Raises SealedValueError unless it opens; without a key, unless it looks as if it would."""
    if key is None:
        check_form(content)
    else:
        key.open(name, content)


@contextmanager
def _opened(what: str, content: bytes, open_seal: Open | None) -> Iterator[RootKey | None]:
    """The root key in the header of `what`, if it is wanted."""
    if open_seal is None:
        yield None
        return
    try:
        key = open_seal(header.decode(content))
    except KeyStoreError as error:
        raise BackupError(f"the seal of '{what}' does not open: {error}") from error
    try:
        yield key
    finally:
        key.close()
