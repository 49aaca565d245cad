"""Whom a client trusts and who it is: files and API keys, made into what a handshake needs.

Nothing secret is written to a file, and nothing of it is in an error.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from keswick import pem, roots
from keswick._native import ClientTls

if TYPE_CHECKING:
    from keswick.identity import APIKey

Password = str | Callable[[], str]
"""A function is called only if the key is encrypted."""


def client_tls(
    *,
    api_key: "APIKey | str | None",
    cert: str | Path | None,
    key: str | Path | None,
    password: Password | None,
    ca_file: str | Path | None,
    verify: bool,
) -> ClientTls:
    """Raises ValueError or OSError when a credential or a file cannot be used."""
    if api_key is not None and (cert is not None or key is not None):
        raise ValueError("an API key and a certificate cannot be used at the same time")
    if (cert is None) != (key is None):
        raise ValueError("a certificate and its private key are needed together")
    trusted = _trusted(ca_file) if verify else None
    if api_key is not None:
        from keswick.identity import APIKey, certificate_for

        pair = certificate_for(APIKey.parse(api_key) if isinstance(api_key, str) else api_key)
        return ClientTls(roots=trusted, certificates=[pair.certificate], key=pair.key)
    if cert is not None and key is not None:
        certificates = _read_certificates(Path(cert))
        return ClientTls(roots=trusted, certificates=certificates, key=_read_key(Path(key), password))
    return ClientTls(roots=trusted)


def _trusted(ca_file: str | Path | None) -> list[bytes]:
    if ca_file is None:
        found = list(roots.system())
        if not found:
            named = [name for name in roots.VARIABLES if os.environ.get(name)]
            missing = "this system has no certificates of authorities"
            if named:
                missing = f"there are no certificates where {' and '.join(named)} say{'s' * (len(named) == 1)}"
            raise ValueError(
                f"{missing}: set KES_CA_FILE (ca_file) to a PEM file with the certificate of the server or of its CA"
            )
        return found
    path = Path(ca_file)
    found = list(roots.certificates(path))
    if not found:
        raise ValueError(f"'{path}' contains no PEM certificate to trust")
    return found


def _read_certificates(path: Path) -> list[bytes]:
    blocks = _blocks(path)
    if other := next((block.label for block in blocks if block.label != "CERTIFICATE"), None):
        raise ValueError(f"'{path}' contains a PEM block '{other}'; a certificate file holds certificates only")
    if not blocks:
        raise ValueError(f"'{path}' contains no PEM certificate")
    return [block.der for block in blocks]


def _read_key(path: Path, password: Password | None) -> bytes:
    block = next((block for block in _blocks(path) if block.is_private_key), None)
    if block is None:
        raise ValueError(f"'{path}' contains no PEM private key")
    if not block.is_encrypted:
        return block.der
    if password is None:
        raise ValueError(f"the private key in '{path}' is encrypted: a password is needed")
    return pem.decrypt(block, password if isinstance(password, str) else password())


def _blocks(path: Path) -> list[pem.Block]:
    try:
        return pem.blocks(path.read_text("ascii", "replace"))
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from None
