"""Files that hold a secret: a passphrase, a key, a PIN, a token."""

import os
import stat

from keswick.keystore.contract import KeyStoreError

_MAX_SIZE = 64 << 10


def read(path: str, setting: str) -> bytes:
    """The whole file; `setting` is what names it. Raises KeyStoreError."""
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_SIZE + 1)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | IsADirectoryError)
        advice = "name the right file" if missing else "let the user of this process read it"
        raise KeyStoreError(f"'{setting}': '{path}' cannot be read ({error.strerror}): {advice}") from None
    if len(content) > _MAX_SIZE:
        raise KeyStoreError(f"'{setting}': '{path}' is larger than {_MAX_SIZE} bytes: name the right file")
    return content


def read_line(path: str, setting: str) -> bytes:
    """The file without the line end that editors put behind what is written, and not empty."""
    content = read(path, setting)
    line = content[: -2 if content.endswith(b"\r\n") else -1] if content.endswith(b"\n") else content
    if not line:
        raise KeyStoreError(f"'{setting}': '{path}' is empty")
    return line


def warnings(path: str) -> list[str]:
    """Whether others than the owner can use it."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return []
    if not mode & (stat.S_IRWXG | stat.S_IRWXO):
        return []
    return [f"others than the owner can use '{path}', which opens the key store: set its mode to 0400 or 0600"]
