"""The TLS section of a configuration, made into what a handshake needs."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from keswick import pem, roots
from keswick._native import Certificate, Tls, Verifier
from keswick.config import TLS, ConfigError
from keswick.encoding import day
from keswick.identity import RENEWAL_SECONDS


@dataclass(frozen=True, slots=True)
class ServerTLS:
    """A server certificate, ready for handshakes.

    `tls`: for clients, who are asked for a certificate. `public`: for a listener that asks nobody. `not_after`: when
    the certificate expires, in seconds since 1970. `roots`: hashes of the roots that clients' certificates must chain
    to, and `verifier`: the same check for certificates that a TLS proxy forwards; None when they are not verified.
    """

    tls: Tls
    public: Tls
    not_after: int
    roots: frozenset[bytes] | None
    verifier: Verifier | None

    def warnings(self, now: float) -> Iterator[str]:
        """What an operator should know of its dates; `now`: seconds since 1970."""
        end = day(self.not_after)
        if self.not_after < now:
            yield f"the server's certificate expired on {end}; clients refuse it: renew 'tls.cert' and send SIGHUP"
        elif self.not_after < now + RENEWAL_SECONDS:
            yield f"the server's certificate expires on {end}: renew 'tls.cert'"

    def tightens(self, old: "ServerTLS") -> bool:
        """Whether clients that `old` let in might not be let in by this one."""
        return self.roots is not None and (old.roots is None or not self.roots >= old.roots)


def load(section: TLS, *, optional: bool) -> ServerTLS:
    """Read the files that the section names. `optional`: whether clients may come without a certificate.

    Raises ConfigError that names the file and what is wrong with it.
    """
    certificates = chain(section)
    refuse_nameless(section, Certificate(certificates[0]))
    key = private_key(section)
    trusted = list(client_roots(section)) if section.auth else None
    try:
        return from_der(certificates, key, optional=optional, roots=trusted)
    except ValueError as error:
        raise ConfigError(f"tls.cert '{section.cert}' and tls.key '{section.key}': {error}") from None


def from_der(certificates: list[bytes], key: bytes, *, optional: bool, roots: list[bytes] | None = None) -> ServerTLS:
    """`roots`: DER certificates that clients' must chain to; None when they are not verified. Raises ValueError."""
    demand = "request" if optional else "require"
    return ServerTLS(
        tls=Tls(certificates=certificates, key=key, client_auth=demand, verify=roots is not None, roots=roots or []),
        public=Tls(certificates=certificates, key=key, client_auth="none"),
        not_after=Certificate(certificates[0]).not_after,
        roots=None if roots is None else frozenset(sha256(root).digest() for root in roots),
        verifier=None if roots is None else Verifier(roots),
    )


def chain(section: TLS) -> list[bytes]:
    """The server's certificates (DER), of which the first can be read. Raises ConfigError."""
    certificates = [block.der for block in _blocks(section.cert, "tls.cert") if block.label == "CERTIFICATE"]
    if not certificates:
        raise ConfigError(f"tls.cert: '{section.cert}' contains no certificate; it must be a PEM file")
    try:
        Certificate(certificates[0])
    except ValueError as error:
        raise ConfigError(f"tls.cert: '{section.cert}' contains no valid certificate: {error}") from None
    return certificates


def refuse_nameless(section: TLS, certificate: Certificate) -> None:
    if not certificate.dns_names and not certificate.ip_addresses:
        raise ConfigError(
            f"tls.cert: '{section.cert}' does not contain any DNS or IP address as SAN; "
            "clients would refuse it: make a certificate with the server's names in its subjectAltName"
        )


def private_key(section: TLS) -> bytes:
    """DER, not encrypted. Raises ConfigError."""
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


def client_roots(section: TLS) -> Iterator[bytes]:
    """The roots that client certificates may chain to: `tls.ca` and the system's. Raises ConfigError."""
    if section.ca:
        try:
            found = list(roots.certificates(Path(section.ca)))
        except OSError as error:
            raise ConfigError(f"tls.ca: cannot read '{section.ca}': {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"tls.ca: {error}") from None
        if not found:
            raise ConfigError(f"tls.ca: '{section.ca}' contains no certificate")
        yield from found
    # What the system keeps and cannot be used is not the operator's mistake.
    for root in roots.system():
        with suppress(ValueError):
            Verifier([root])
            yield root


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
