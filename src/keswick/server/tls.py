"""The TLS section of a configuration, made into what a handshake needs."""

import os
from collections.abc import Iterator
from pathlib import Path

from keswick import pem
from keswick._native import Certificate, Tls
from keswick.config import TLS, ConfigError

_SYSTEM_ROOTS = (  # where distributions keep their bundle of root certificates
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class ServerTLS:
    """A server certificate, ready for handshakes, and when it expires (seconds since 1970)."""

    def __init__(self, tls: Tls, leaf: Certificate) -> None:
        self.tls = tls
        self.not_after = leaf.not_after


def load(section: TLS, *, optional: bool) -> ServerTLS:
    """Read the files that the section names. `optional`: whether clients may come without a certificate.

    Raises ConfigError that names the file and what is wrong with it.
    """
    certificates = [block.der for block in _blocks(section.cert, "tls.cert") if block.label == "CERTIFICATE"]
    if not certificates:
        raise ConfigError(f"tls.cert: '{section.cert}' contains no certificate; it must be a PEM file")
    try:
        leaf = Certificate(certificates[0])
    except ValueError as error:
        raise ConfigError(f"tls.cert: '{section.cert}' contains no valid certificate: {error}") from None
    if not leaf.dns_names and not leaf.ip_addresses:
        raise ConfigError(
            f"tls.cert: '{section.cert}' does not contain any DNS or IP address as SAN; "
            "clients would refuse it: make a certificate with the server's names in its subjectAltName"
        )
    return from_der(
        certificates,
        _private_key(section),
        optional=optional,
        roots=list(_roots(section)) if section.auth else None,
        source=f"tls.cert '{section.cert}' and tls.key '{section.key}'",
    )


def from_der(
    certificates: list[bytes], key: bytes, *, optional: bool, roots: list[bytes] | None = None, source: str = "tls"
) -> ServerTLS:
    """`roots`: DER certificates that clients' must chain to; None when they are not verified."""
    try:
        tls = Tls(
            certificates=certificates,
            key=key,
            client_auth="request" if optional else "require",
            verify=roots is not None,
            roots=roots or [],
        )
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    return ServerTLS(tls, Certificate(certificates[0]))


def load_for_metrics(section: TLS) -> Tls:
    """The same server certificate for the second listener, which asks no client for one."""
    certificates = [block.der for block in _blocks(section.cert, "tls.cert") if block.label == "CERTIFICATE"]
    return Tls(certificates=certificates, key=_private_key(section), client_auth="none")


def _blocks(path: str, key: str) -> list[pem.Block]:
    try:
        blocks = pem.blocks(Path(path).read_text("ascii", "replace"))
    except OSError as error:
        raise ConfigError(f"{key}: cannot read '{path}': {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{key}: '{path}': {error}") from None
    for block in blocks:
        if block.label != "CERTIFICATE" and not block.is_private_key and "PARAMETERS" not in block.label:
            raise ConfigError(f"{key}: '{path}' contains an unsupported PEM block '{block.label}'")
    return blocks


def _private_key(section: TLS) -> bytes:
    key = next((block for block in _blocks(section.key, "tls.key") if block.is_private_key), None)
    if key is None:
        raise ConfigError(f"tls.key: '{section.key}' contains no private key; it must be a PEM file")
    if not key.is_encrypted:
        return key.der
    if not section.password:
        raise ConfigError(f"tls.key: the private key in '{section.key}' is encrypted; set 'tls.password'")
    try:
        return pem.decrypt(key, section.password)
    except ValueError:
        raise ConfigError(f"tls.key: '{section.key}' cannot be decrypted with 'tls.password'") from None


def _roots(section: TLS) -> Iterator[bytes]:
    """The roots that client certificates may chain to: `tls.ca` and the system's."""
    if section.ca:
        folder = Path(section.ca)
        files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else [folder]
        found = [block.der for path in files for block in _blocks(str(path), "tls.ca") if block.label == "CERTIFICATE"]
        if not found:
            raise ConfigError(f"tls.ca: '{section.ca}' contains no certificate")
        yield from found
    for path in _system_roots():
        try:
            blocks = pem.blocks(path.read_text("ascii", "replace"))
        except (OSError, ValueError):
            continue  # what the system keeps is not the operator's mistake
        yield from (block.der for block in blocks if block.label == "CERTIFICATE")


def _system_roots() -> list[Path]:
    if file := os.environ.get("SSL_CERT_FILE"):
        return [Path(file)]
    if folder := os.environ.get("SSL_CERT_DIR"):
        return [path for path in Path(folder).iterdir() if path.is_file()] if Path(folder).is_dir() else []
    return [path for name in _SYSTEM_ROOTS if (path := Path(name)).is_file()][:1]
