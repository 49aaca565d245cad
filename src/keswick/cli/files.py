"""Files that appear whole or not at all, and with the right permissions from the first moment."""

import os
import tempfile
from pathlib import Path


def write_file(path: Path, text: str, *, secret: bool, overwrite: bool = False) -> None:
    """Write and sync. A secret is for its owner only (0600); anything else is subject to the umask (0644).

    Raises FileExistsError unless `overwrite`, and OSError that names the path.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o600 if secret else 0o644 & ~_umask())
            file.write(text)
            file.flush()
            os.fsync(handle)
        if overwrite:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        Path(temporary).unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last through a crash of the machine."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0o077)  # there is no way to look at it without setting it
    os.umask(mask)
    return mask
