"""Files that the sections `tls` of key stores name, as Python's library takes them."""

import ssl
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from keswick.keystore.contract import KeyStoreError


def load_pair(context: ssl.SSLContext, service: str, cert: str, key: str) -> None:
    """Have the client's certificate and key shown, PEM files. Raises KeyStoreError, which names the service."""
    try:
        context.load_cert_chain(cert, key, _no_password)
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) else error
        raise KeyStoreError(f"{service}: tls.cert '{cert}' and tls.key '{key}' cannot be used: {words}") from error


def versions(files: Iterable[str]) -> list[tuple[int, ...]]:
    """What changes with the content of files, and of folders of files. What cannot be looked at is not in it."""
    found: list[tuple[int, ...]] = []
    for name in files:
        for file in (Path(name), *_in_folder(Path(name))):
            with suppress(OSError):
                status = file.stat()
                found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    return found


def _in_folder(path: Path) -> Iterator[Path]:
    """None in what is no folder, or cannot be read."""
    with suppress(OSError):
        yield from sorted(path.iterdir())


def _no_password() -> str:
    raise ValueError("the private key is encrypted, which is not supported here")
