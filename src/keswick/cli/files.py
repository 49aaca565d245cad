"""Files that appear whole or not at all, and with the right permissions from the first moment."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from errno import EISDIR
from pathlib import Path
from typing import NamedTuple


class NewFile(NamedTuple):
    path: Path
    text: str
    secret: bool
    """A secret is for its owner only (0600); anything else is subject to the umask (0644)."""


def write_files(*files: NewFile, overwrite: bool = False) -> None:
    """Write and sync several files. The first gets its name when all are written, the last when the others have theirs.

    Raises FileExistsError unless `overwrite`, and OSError that names the path. Then no new file stays, and none is
    overwritten but those before the one that failed: what nobody can make again comes last.
    """
    with ExitStack() as temporaries:
        written = [(_write_temporary(file, temporaries), file.path) for file in files]
        with ExitStack() as undo:
            for temporary, path in written:
                with _naming(path):
                    try:
                        os.link(temporary, path)
                        undo.callback(path.unlink)
                    except FileExistsError:
                        if not overwrite:
                            raise
                        os.replace(temporary, path)
            for folder in {file.path.parent for file in files}:
                sync_folder(folder)
            undo.pop_all()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_temporary(file: NewFile, clean_up: ExitStack) -> Path:
    """The file under another name in the same folder, which `clean_up` removes."""
    with _naming(file.path):
        if file.path.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        handle, name = tempfile.mkstemp(prefix=f".{file.path.name}.", dir=file.path.parent)
        temporary = Path(name)
        clean_up.callback(temporary.unlink, missing_ok=True)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            os.fchmod(handle, 0o600 if file.secret else 0o644 & ~_umask())
            stream.write(file.text)
            stream.flush()
            os.fsync(handle)
    return temporary


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors name the file that was wanted, not the temporary one."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _umask() -> int:
    mask = os.umask(0o077)  # there is no way to look at it without setting it
    os.umask(mask)
    return mask
