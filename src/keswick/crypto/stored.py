"""The five forms in which a key lies in a key store. `docs/formats.md` has the whole history.

    A  v0.1 to v0.18             {"bytes":"<base64 of 32 bytes>"}
    B  v0.19 to v0.21            A with "algorithm"?, "created_at", "created_by"?, algorithms by their long names
    C  v0.22 to 2023-10-03       B with a leading "version":"v1"
    D  2023-10-24 to 2024-01-11  C, but "algorithm" is "ChaCha20", or absent for AES
    E  since 2024-02-29          base64 of a Protocol Buffers message, the only one that has an HMAC key:

        message Key        { SecretKey secret = 1; HMACKey hmac = 2; Timestamp created_at = 3; string created_by = 4; }
        message SecretKey  { bytes key = 1; Type type = 2; }    32 bytes; 1 is AES256, 2 is ChaCha20
        message HMACKey    { bytes key = 1; Hash hash = 2; }    32 bytes; 1 is SHA-256
        message Timestamp  { int64 seconds = 1; int32 nanos = 2; }

E is what is written, the fields ascending and zero values left out, to the byte as the newest original does; all five
are read. Source: the output of every generation of the original (tests/vectors/golden).
"""

import binascii
from dataclasses import dataclass, field

from keswick.crypto import protobuf
from keswick.crypto.algorithms import AES256, BY_NAME, CHACHA20
from keswick.encoding import b64decode_go, json_object, parse_rfc3339, rfc3339

KEY_SIZE = 32

_TYPES = {1: AES256, 2: CHACHA20}
_TYPE_NUMBERS = {algorithm: number for number, algorithm in _TYPES.items()}
_SHA256 = 1
_SECOND = 1_000_000_000
_NO_TIME = "0001-01-01T00:00:00Z"


class KeyFormatError(ValueError):
    """A stored key cannot be read. Says why, and never shows a byte of it."""


class NoHMACKeyError(ValueError):
    """The key was stored in a form that has no HMAC key."""

    def __init__(self) -> None:
        super().__init__("the key was made before keys had an HMAC key")


@dataclass(frozen=True, slots=True, eq=False)
class StoredKey:
    """What a stored key says, and no more: `algorithm` is None when it names none."""

    key: bytes = field(repr=False)
    algorithm: str | None
    hmac_key: bytes | None = field(repr=False)
    created_at: str
    """RFC 3339."""
    created_by: str


def decode(value: bytes) -> StoredKey:
    """Read any of the five forms. Raises KeyFormatError."""
    try:
        # No base64 text begins like a JSON object, so the first character decides.
        return _decode_json(value) if value.lstrip(b" \t\r\n").startswith(b"{") else _decode_protobuf(value)
    except KeyFormatError:
        raise
    except ValueError as error:
        raise KeyFormatError(f"the stored key cannot be read: {error}") from None


def encode(key: StoredKey) -> bytes:
    """Write form E, which always has an HMAC key. Raises NoHMACKeyError."""
    if key.hmac_key is None:
        raise NoHMACKeyError
    seconds, nanos = divmod(parse_rfc3339(key.created_at), _SECOND)
    secret = protobuf.binary(1, key.key) + protobuf.integer(2, _TYPE_NUMBERS[key.algorithm or AES256])
    hmac = protobuf.binary(1, key.hmac_key) + protobuf.integer(2, _SHA256)
    created_at = protobuf.integer(1, seconds) + protobuf.integer(2, nanos)
    message = (
        protobuf.message(1, secret)
        + protobuf.message(2, hmac)
        + protobuf.message(3, created_at)
        + protobuf.binary(4, key.created_by.encode())
    )
    return binascii.b2a_base64(message, newline=False)


def _decode_json(value: bytes) -> StoredKey:
    fields = json_object(value)
    key = _sized("bytes", b64decode_go(_text(fields, "bytes")))
    name = _text(fields, "algorithm")
    if name and name not in BY_NAME:
        raise KeyFormatError(f"the stored key's algorithm is none of {', '.join(BY_NAME)}")
    created_at = _text(fields, "created_at", _NO_TIME)
    parse_rfc3339(created_at)
    return StoredKey(key, BY_NAME[name] if name else None, None, created_at, _text(fields, "created_by"))


def _text(fields: dict[str, object], name: str, default: str = "") -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise KeyFormatError(f"the stored key's {name} is not a string")
    return value


def _decode_protobuf(value: bytes) -> StoredKey:
    message = protobuf.Message(b64decode_go(value))
    secret, hmac, created_at = message.message(1), message.message(2), message.message(3)
    if secret is None or hmac is None:
        raise KeyFormatError("the stored key is incomplete: its secret key or its HMAC key is missing")
    if secret.integer(2) not in _TYPES:
        raise KeyFormatError("the stored key's type is neither 1 (AES256) nor 2 (ChaCha20)")
    if hmac.integer(2) != _SHA256:
        raise KeyFormatError("the stored HMAC key's hash is not 1 (SHA-256)")
    try:
        created_by = message.binary(4).decode()
    except UnicodeDecodeError:
        raise KeyFormatError("the stored key's creator is not UTF-8") from None
    ns = created_at.integer(1) * _SECOND + created_at.integer(2) if created_at else 0
    return StoredKey(
        key=_sized("secret key", secret.binary(1)),
        algorithm=_TYPES[secret.integer(2)],
        hmac_key=_sized("HMAC key", hmac.binary(1)),
        created_at=rfc3339(ns),
        created_by=created_by,
    )


def _sized(what: str, key: bytes) -> bytes:
    if len(key) != KEY_SIZE:
        raise KeyFormatError(f"the stored {what} has {len(key)} bytes, not {KEY_SIZE}")
    return key
