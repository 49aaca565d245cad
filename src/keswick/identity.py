"""Who a client is: the hash of its public key. API keys (private keys as one word), and certificates made of keys."""

import base64
import hashlib
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from keswick import _native, pem

_IDENTITY = re.compile("[0-9a-f]{64}")
_LABEL = r"(?!-)[0-9A-Za-z_-]{1,63}(?<!-)"
_DNS_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?(?:{_LABEL}\.)*{_LABEL}\.?")

RENEWAL_SECONDS = 30 * 86_400
"""Before its end, from which on a certificate should be renewed."""


def identity_of(public_key_der: bytes) -> str:
    """64 lower-case hex digits: the SHA-256 of a DER SubjectPublicKeyInfo."""
    return hashlib.sha256(public_key_der).hexdigest()


def is_identity(text: str) -> bool:
    """Whether it is what `identity_of` makes of a key. Any other text matches nobody."""
    return _IDENTITY.fullmatch(text) is not None


class APIKey:
    """An Ed25519 private key as one word: `kes:v1:` and the base64 of a type byte (0) and the 32-byte seed."""

    __slots__ = ("_seed",)

    PREFIX = "kes:v1:"

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ValueError("kes: invalid API key: invalid length")
        self._seed = seed

    @classmethod
    def generate(cls) -> "APIKey":
        return cls(os.urandom(32))

    @classmethod
    def parse(cls, text: str) -> "APIKey":
        """The text may lack the prefix and have white space around it. ValueError, without the text, if it is none."""
        try:
            raw = base64.b64decode(text.strip().removeprefix(cls.PREFIX), validate=True)
        except ValueError:
            raise ValueError("kes: invalid API key: it is not base64") from None
        if len(raw) != 33:
            raise ValueError("kes: invalid API key: invalid length")
        if raw[0] != 0:
            raise ValueError("kes: invalid API key: unsupported type")
        return cls(raw[1:])

    @classmethod
    def from_private_key(cls, der: bytes) -> "APIKey":
        """`der`: an Ed25519 private key in PKCS#8. ValueError when it is something else."""
        # Late: only `kes identity` reads such a file, of which there are several forms.
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_der_private_key

        try:
            key = load_der_private_key(der, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("unsupported private key. Only ed25519 private keys are supported")
        return cls(key.private_bytes_raw())

    @property
    def text(self) -> str:
        """The API key itself, a secret."""
        return self.PREFIX + base64.b64encode(b"\0" + self._seed).decode()

    @property
    def identity(self) -> str:
        return identity_of(_native.public_key_of(self._seed))

    def __repr__(self) -> str:
        return "APIKey(<redacted>)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, APIKey) and self._seed == other._seed

    def __hash__(self) -> int:
        return hash(self._seed)


class KeyPair(NamedTuple):
    """A certificate (DER) and its private key (DER, PKCS#8)."""

    certificate: bytes
    key: bytes
    identity: str

    def __repr__(self) -> str:
        return f"KeyPair({self.identity})"

    @property
    def certificate_pem(self) -> str:
        return pem.encode("CERTIFICATE", self.certificate)

    def key_pem(self, password: str | None = None) -> str:
        """PKCS#8, encrypted when there is a password, which must not be empty."""
        return pem.encode("PRIVATE KEY", self.key) if password is None else pem.encrypt(self.key, password)


def certificate_for(api_key: APIKey) -> KeyPair:
    """What a client with that API key shows to a server, made afresh and good for 90 days."""
    return self_signed(api_key.identity, key=api_key, lifetime=timedelta(days=90), client=True)


def self_signed(
    subject: str,
    *,
    lifetime: timedelta,
    key: APIKey | None = None,
    dns: Iterable[str] = (),
    ips: Iterable[str] = (),
    client: bool = False,
    server: bool = False,
) -> KeyPair:
    """A certificate signed by its own key, valid from now on.

    `subject`: the common name, 1 to 64 characters. `key`: None makes a new P-256 key. `dns`, `ips`: the alternative
    names. `client`, `server`: the extended key usages. ValueError names what cannot be in a certificate.
    """
    now = datetime.now(UTC)
    try:
        end = now + lifetime
    except OverflowError:
        raise ValueError("a certificate cannot be valid for so long") from None
    certificate, private_key, public_key = _native.self_signed(
        None if key is None else key._seed,
        subject,
        not_before=int(now.timestamp()),
        not_after=int(end.timestamp()),
        dns=[_dns_name(host) for host in dns],
        ips=list(ips),
        client=client,
        server=server,
    )
    return KeyPair(certificate, private_key, identity_of(public_key))


def is_dns_name(text: str) -> bool:
    """Whether a certificate can have that alternative name; its first label may be `*`."""
    return _DNS_NAME.fullmatch(text) is not None


def _dns_name(text: str) -> str:
    if not is_dns_name(text):
        advice = "" if text.isascii() else "; write an international name in its ASCII form (xn--…)"
        raise ValueError(f"'{text}' is not a DNS name{advice}")
    return text
