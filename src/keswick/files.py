"""Files that appear whole or not at all, and with the right permissions from the first moment."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

PRIVATE = 0o600
PUBLIC = 0o644
"""Modes of new files, before the umask."""

_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.EPERM}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES}
"""Some network file systems refuse it, and so does a folder that may be written to but not be read."""


class NewFile(NamedTuple):
    path: Path
    text: str
    secret: bool
    """A secret is for its owner only (0600); anything else is subject to the umask (0644)."""


def write_files(*files: NewFile, overwrite: bool = False) -> None:
    """Write and sync several files. The first gets its name when all are written, the last when the others have theirs.

    Raises FileExistsError unless `overwrite`, which is for files, not for links or devices; OSError names the path.
    Then no new file stays, and none is overwritten but those before the one that failed: what nobody can make again
    comes last.
    """
    with ExitStack() as drafts:
        written = []
        for file in files:
            draft = drafts.enter_context(_draft(file.path, PRIVATE if file.secret else PUBLIC, overwrite))
            draft.write(file.text.encode())
            draft.sync()
            written.append(draft)
        with ExitStack() as undo:
            for draft in written:
                if draft.publish(overwrite=overwrite):
                    undo.callback(draft.path.unlink)
            for folder in {file.path.parent for file in files}:
                sync_folder(folder)
            undo.pop_all()


@contextmanager
def new_file(path: Path, *, mode: int = PRIVATE, overwrite: bool = False) -> Iterator["Draft"]:
    """A file to be written piece by piece, which gets its name, whole and synced, when the block ends well; otherwise
    nothing of it stays.

    `mode` is subject to the umask. Raises FileExistsError, before the block and again after it, unless `overwrite`,
    which is for files, not for links or devices; OSError names the path.
    """
    with _draft(path, mode, overwrite) as draft:
        yield draft
        draft.sync()
        draft.publish(overwrite=overwrite)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a crash of the machine."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
        os.sync()


class Draft:
    """A file in the making. It has no name, so that nothing stays of it even if the process is killed; or, where the
    file system cannot do that, a temporary one."""

    def __init__(self, path: Path, mode: int) -> None:
        self.path = path
        self._temporary: Path | None = None
        try:
            self._handle = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, mode)
            if not os.path.exists(self._in_proc()):  # no /proc: there is no way to name it later
                os.close(self._handle)
                raise OSError(errno.EOPNOTSUPP, "")
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
            self._temporary = self._other_name()
            self._handle = os.open(self._temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)

    def write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        with _naming(self.path):
            while rest:
                rest = rest[os.write(self._handle, rest) :]

    def sync(self) -> None:
        with _naming(self.path):
            os.fsync(self._handle)

    def publish(self, *, overwrite: bool) -> bool:
        """Give it its name. Whether the name is a new one; FileExistsError, unless `overwrite`, if it was taken."""
        with _naming(self.path):
            try:
                self._link(self.path)
            except FileExistsError:
                if not overwrite:
                    raise
                if self._temporary is None:  # only what has a name can take another's place
                    name = self._other_name()
                    self._link(name)
                    self._temporary = name
                os.replace(self._temporary, self.path)
                return False
        return True

    def close(self) -> None:
        os.close(self._handle)
        if self._temporary is not None:
            with suppress(OSError):
                self._temporary.unlink()

    def _link(self, name: Path) -> None:
        if self._temporary is None:
            folder = os.open(name.parent, os.O_PATH | os.O_DIRECTORY)
            try:  # the call that follows the link of /proc to the file wants a folder
                os.link(self._in_proc(), name.name, dst_dir_fd=folder, follow_symlinks=True)
            finally:
                os.close(folder)
            return
        try:
            os.link(self._temporary, name)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Without hard links, as on a memory stick: take the name first, then the place behind it.
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))
            os.replace(self._temporary, name)

    def _in_proc(self) -> str:
        return f"/proc/self/fd/{self._handle}"

    def _other_name(self) -> Path:
        # Short, whatever the length of the name: it must be a file name, too.
        return self.path.with_name(f".kes-{os.urandom(8).hex()}.tmp")


def _check_place(path: Path, overwrite: bool) -> None:
    """Only a file is ever overwritten: not a device, nor a link, which may lead to one, as /dev/stdout does."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if not stat.S_ISREG(os.lstat(path).st_mode):
        raise OSError(errno.EINVAL, "a link, a device or a pipe is there, and only files are overwritten")


@contextmanager
def _draft(path: Path, mode: int, overwrite: bool) -> Iterator[Draft]:
    with _naming(path):
        _check_place(path, overwrite)
        draft = Draft(path, mode)
    try:
        yield draft
    finally:
        draft.close()


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name the file that was wanted, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
