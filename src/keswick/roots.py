"""Certificates of authorities, in files, in folders, and where the system keeps its own."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from keswick import pem

_BUNDLES = (  # where distributions keep theirs
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)

VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
"""They name a file, and folders, that are the system's certificates then."""


def certificates(path: Path) -> Iterator[bytes]:
    """The certificates (DER) in a PEM file, or in the files of a folder, where what is no PEM file is passed over.

    Raises OSError, and ValueError for a file with a broken PEM block.
    """
    if not path.is_dir():
        yield from _in_file(path)
        return
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        with suppress(ValueError):
            yield from _in_file(file)


def system() -> Iterator[bytes]:
    """The certificates (DER) of the authorities that the system trusts: of the file that SSL_CERT_FILE names and the
    folders that SSL_CERT_DIR names, if one is set. What cannot be read is passed over."""
    for name in _places():
        with suppress(OSError, ValueError):
            yield from certificates(Path(name))


def _places() -> list[str]:
    file, folders = map(os.environ.get, VARIABLES)
    if file or folders:
        return [*([file] if file else []), *(folders.split(os.pathsep) if folders else [])]
    return [name for name in _BUNDLES if Path(name).is_file()][:1]


def _in_file(path: Path) -> Iterator[bytes]:
    try:
        blocks = pem.blocks(path.read_text("ascii", "replace"))
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
    return (block.der for block in blocks if block.label == "CERTIFICATE")
