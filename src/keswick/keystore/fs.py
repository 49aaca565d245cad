"""The file system as a key store: one folder, one file per key, the file's name is the key's name.

A key file appears whole or not at all: it is written without a name, brought to the disk, and then linked to its name,
which fails if the name is taken. So a reader in any process never sees half a key, of several creators exactly one
wins, and a crash leaves nothing behind. Files are for the owner alone (0600), folders that are made too (0700).

What else lies in the folder is foreign and ignored: anything that is not a regular file, names that begin with a dot,
and names that no key can have. A symbolic link to a regular file is a key, since orchestrators mount secrets that way.
"""

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, NotAKey
from keswick.keystore.section import Setting, Shape
from keswick.names import is_stored_name

SHAPE = Shape(required=("path",), folder="path")

SETTINGS = (
    Setting(
        "path",
        "the folder; it is made if it does not exist. A relative path begins where the server was started",
        "path",
        "/var/lib/kes/keys",
        needed="",
    ),
)

MAX_VALUE = 1 << 20
"""Bytes. A larger file is no key."""

_TEMPORARY = re.compile(r"\.keswick-[0-9a-f]{32}\.tmp|\.kes-[0-9a-f]{16}\.tmp")
"""Of a create, and of the header of an encrypted folder (`keswick.files`)."""
_STALE = 3600.0
"""Seconds after which a temporary file is no longer being written."""

_ABSENT = {errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENAMETOOLONG}
"""There is no regular file of that name: nothing, a link that leads nowhere, a socket."""

_AWAY = {errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT}
"""The folder, or the network behind it, is away."""

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.EPERM}
"""A file without a name cannot be made, or be linked to one, here: an older file system, or no /proc."""


def open(settings: Mapping[str, str]) -> KeyStore:
    from keswick.keystore.seals.header import FILE

    path = settings["path"]
    if os.path.lexists(os.path.join(path, FILE)):
        raise KeyStoreError(f"'{path}' is an encrypted folder: let 'keystore.encryptedfs' name it, and its seal")
    return FSStore(path)


def is_new(settings: Mapping[str, str]) -> bool:
    """Whether opening would make the folder."""
    return not os.path.lexists(settings["path"])


class FSStore(KeyStore):
    """Keys in the folder `path`, which is made, with its parents, when it is not there.

    Raises KeyStoreError when the path is not a folder or cannot be made or read.
    """

    atomic_create = True

    def __init__(self, path: str) -> None:
        self.path = path
        self.description = f"Filesystem: {path}"
        try:
            make_folder(Path(path))
        except (FileExistsError, NotADirectoryError):
            raise KeyStoreError(f"the key store path '{path}' is not a folder: name a folder for the keys") from None
        except OSError as error:
            raise _failure("make the key folder", path, error) from error
        self._below: int | None = None
        with self._folder() as folder:
            self._below = _device_below(path, os.fstat(folder).st_dev)
            _remove_stale_files(folder)

    def status(self) -> float:
        started = time.perf_counter()
        with self._folder():
            return time.perf_counter() - started

    def create(self, name: str, value: bytes) -> None:
        if not _is_key_name(name):
            raise KeyStoreError(f"{name!r} cannot be the name of a key file")
        with self._folder() as folder:
            try:
                self._refuse_taken(folder, name)
                _write_new(folder, name, value)
                _sync_folder(folder)
            except FileExistsError:
                self._refuse_taken(folder, name)
                raise KeyExists(name) from None  # taken, and freed since
            except OSError as error:
                raise _failure("create the key file", os.path.join(self.path, name), error) from error

    def get(self, name: str) -> bytes:
        if not _is_key_name(name):
            raise KeyNotFound(name)
        with self._folder() as folder:
            try:
                value = _read(folder, name)
            except OSError as error:
                if error.errno in _ABSENT:
                    raise KeyNotFound(name) from None
                raise _failure("read the key file", os.path.join(self.path, name), error) from error
        if value is None:
            raise KeyNotFound(name)
        if len(value) > MAX_VALUE:
            raise NotAKey(f"'{os.path.join(self.path, name)}' is no key: it is larger than {MAX_VALUE} bytes")
        return value

    def delete(self, name: str) -> None:
        if not _is_key_name(name):
            raise KeyNotFound(name)
        with self._folder() as folder:
            try:
                if not stat.S_ISREG(os.stat(name, dir_fd=folder).st_mode):
                    raise KeyNotFound(name)
                os.unlink(name, dir_fd=folder)
                _sync_folder(folder)
            except OSError as error:
                if error.errno in _ABSENT:
                    raise KeyNotFound(name) from None
                raise _failure("delete the key file", os.path.join(self.path, name), error) from error

    def list(self, prefix: str) -> Sequence[str]:
        with self._folder() as folder:
            return [entry.name for entry in self._key_files(folder) if entry.name.startswith(prefix)]

    def warnings(self) -> Sequence[str]:
        with self._folder() as folder:
            exposed = []
            for entry in self._key_files(folder):
                with suppress(OSError):
                    if entry.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                        exposed.append(entry.name)
            open_folder = os.fstat(folder).st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        found = []
        if open_folder:
            found.append(f"others than the owner can write to the key folder '{self.path}': set its mode to 0700")
        if exposed:
            found.append(
                f"others than the owner can use {len(exposed)} key file(s) in '{self.path}', such as "
                f"'{min(exposed)}': set their mode to 0600"
            )
        return found

    def close(self) -> None:
        """Nothing is held between calls."""

    @contextmanager
    def _folder(self) -> Iterator[int]:
        """The folder, opened afresh each time: one that was moved away is noticed, one that is back is used."""
        try:
            # The dot asks for the permission to search, too.
            folder = os.open(os.path.join(self.path, "."), os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            if error.errno in _AWAY:
                raise KeyStoreUnreachable(
                    f"the key folder '{self.path}' is away ({os.strerror(error.errno)}): mount or restore it"
                ) from error
            raise _failure("open the key folder", self.path, error) from error
        try:
            if os.fstat(folder).st_dev == self._below:
                raise KeyStoreUnreachable(
                    f"the key folder '{self.path}' is not the one of the start: its file system is no longer mounted"
                )
            yield folder
        finally:
            os.close(folder)

    def _refuse_taken(self, folder: int, name: str) -> None:
        """Raise KeyExists if `name` is a key; something foreign under that name is an error that says so."""
        try:
            found = os.lstat(name, dir_fd=folder)
            with suppress(OSError):
                found = os.stat(name, dir_fd=folder)
        except FileNotFoundError:
            return
        if stat.S_ISREG(found.st_mode):
            raise KeyExists(name)
        raise KeyStoreError(f"'{os.path.join(self.path, name)}' is in the way and no key file: move it away")

    def _key_files(self, folder: int) -> Iterator["os.DirEntry[str]"]:
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _is_key_name(entry.name) and _is_file(entry):
                        yield entry
        except OSError as error:
            raise _failure("read the key folder", self.path, error) from error


def _is_key_name(name: str) -> bool:
    return not name.startswith(".") and is_stored_name(name)


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads nowhere one may go
        return False


def _device_below(path: str, device: int) -> int | None:
    """That of the file system on which the folder's own is mounted, if any: without the mount, the path may lead to an
    empty folder there, as if all keys had been deleted."""
    for parent in Path(os.path.abspath(path)).parents:
        with suppress(OSError):
            if (below := parent.stat().st_dev) != device:
                return below
    return None


def make_folder(path: Path) -> None:
    """With its parents, lasting through a crash of the machine, and for the owner alone."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync_folder(parent)
    finally:
        os.close(parent)


def _remove_stale_files(folder: int) -> None:
    """Remove what somebody who was killed left here, where files without a name cannot be had."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE:
                os.unlink(entry.name, dir_fd=folder)


def _write_new(folder: int, name: str, value: bytes) -> None:
    """Write a whole file and give it its name. Raises FileExistsError when the name is taken."""
    try:
        file = os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        return _write_new_through_link(folder, name, value)
    try:
        _write(file, value)
        os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=folder, follow_symlinks=True)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        return _write_new_through_link(folder, name, value)
    finally:
        os.close(file)
    return None


def _write_new_through_link(folder: int, name: str, value: bytes) -> None:
    temporary = f".keswick-{secrets.token_hex(16)}.tmp"
    file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=folder)
    try:
        try:
            _write(file, value)
        finally:
            os.close(file)
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)


def _write(file: int, value: bytes) -> None:
    """Write all and bring it to the disk."""
    rest = memoryview(value)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.fsync(file)


def _sync_folder(folder: int) -> None:
    """Bring the names in a folder to the disk. Some network file systems do so themselves and refuse the call."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def _read(folder: int, name: str) -> bytes | None:
    """Up to one byte more than the largest value; None when it is not a regular file."""
    file = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder)  # a pipe must not block
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        value = b""
        while len(value) <= MAX_VALUE and (piece := os.read(file, MAX_VALUE + 1 - len(value))):
            value += piece
        return value
    finally:
        os.close(file)


def _failure(action: str, path: str, error: OSError) -> KeyStoreError:
    match error.errno:
        case errno.EACCES:
            advice = f"let the user of this process (uid {os.geteuid()}) use it"
        case errno.ENOSPC | errno.EDQUOT:
            advice = "make room on its disk"
        case errno.EROFS:
            advice = "mount its file system writable"
        case errno.ENOTDIR:
            advice = "name a folder for the keys"
        case errno.EPERM | errno.EOPNOTSUPP | errno.EMLINK:
            advice = "use a file system that allows it, with hard links"
        case _:
            advice = "see to its disk or file system"
    kind = KeyStoreUnreachable if error.errno in _AWAY - {errno.ENOENT} else KeyStoreError
    return kind(f"cannot {action} '{path}': {os.strerror(error.errno or 0)}; {advice}")
