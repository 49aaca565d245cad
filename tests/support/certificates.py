"""Key pairs and certificates of every kind, made when a test asks for them.

authority = make("p256", name="authority", ca=True)
server = make(issuer=authority, sans=["localhost", "127.0.0.1"], eku=["server"])
client = make("ed25519")                    # self-signed
expired = make(days=(-30, -1))
cert_file, key_file = client.write(tmp_path)
"""

import datetime
import ipaddress
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

GENERATORS: dict[str, Callable[[], CertificateIssuerPrivateKeyTypes]] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa2048": lambda: rsa.generate_private_key(65537, 2048),
}
KINDS = tuple(GENERATORS)
"""The kinds of keys that a client or a server may have."""

USAGES = {
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "any": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
}


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: CertificateIssuerPrivateKeyTypes = field(repr=False)

    @property
    def cert_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def cert_der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def key_pem(self) -> bytes:
        """PKCS#8, not encrypted."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def key_der(self) -> bytes:
        """PKCS#8, not encrypted."""
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    @property
    def public_key_der(self) -> bytes:
        """The SubjectPublicKeyInfo, the bytes an identity is the hash of."""
        return self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def write(self, folder: Path, name: str = "pair", *, chain: Sequence["Pair"] = ()) -> tuple[Path, Path]:
        """Write `<name>.crt` (this certificate, then those of `chain`) and `<name>.key` as PEM; their paths."""
        cert, key = folder / f"{name}.crt", folder / f"{name}.key"
        cert.write_bytes(b"".join([self.cert_pem, *(link.cert_pem for link in chain)]))
        key.write_bytes(self.key_pem)
        key.chmod(0o600)
        return cert, key


@cache
def _rsa_key(index: int) -> CertificateIssuerPrivateKeyTypes:
    # Making an RSA key takes a tenth of a second or more, so that a run makes only a few of them.
    return GENERATORS["rsa2048"]()


_rsa_keys_made = 0


def make_key(kind: str = "ed25519") -> CertificateIssuerPrivateKeyTypes:
    """A private key of one of `KINDS`. RSA keys repeat after the third one."""
    if kind == "rsa2048":
        global _rsa_keys_made
        _rsa_keys_made += 1
        return _rsa_key(_rsa_keys_made % 3)
    return GENERATORS[kind]()


def make(
    kind: str = "ed25519",
    *,
    name: str = "localhost",
    issuer: Pair | None = None,
    ca: bool = False,
    days: tuple[float, float] = (-1, 90),
    sans: Sequence[str] = (),
    eku: Sequence[str] = (),
    key: CertificateIssuerPrivateKeyTypes | None = None,
) -> Pair:
    """A certificate, version 3, for a new key of that kind (or for `key`).

    `name` is the common name. It is self-signed unless `issuer` is given. `days`: when it begins and ends to be valid,
    in days from now. `sans`: DNS names and IP addresses. `eku`: of `USAGES`; none means no such extension.
    """
    key = key or make_key(kind)
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=days[0]))
        .not_valid_after(now + datetime.timedelta(days=days[1]))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if sans:
        builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(san) for san in sans]), False)
    if eku:
        builder = builder.add_extension(x509.ExtendedKeyUsage([USAGES[usage] for usage in eku]), False)
    signer = issuer.key if issuer else key
    return Pair(builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()), key)


def make_v1(kind: str = "p256", *, name: str = "localhost") -> Pair:
    """A self-signed X.509 certificate of version 1, which only OpenSSL still makes."""
    key = make_key(kind)
    with tempfile.TemporaryDirectory() as folder:
        key_file, request, cert = (Path(folder, name) for name in ("key", "request", "cert"))
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        _openssl("req", "-new", "-key", key_file, "-subj", f"/CN={name}", "-out", request)
        _openssl("x509", "-req", "-in", request, "-signkey", key_file, "-days", "30", "-out", cert)
        pair = Pair(x509.load_pem_x509_certificate(cert.read_bytes()), key)
    assert pair.certificate.version is x509.Version.v1
    return pair


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
