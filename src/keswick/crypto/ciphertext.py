"""The encodings of a ciphertext. `docs/formats.md` has the whole history.

Written today, since 2024-02-29 (generation 5), is the raw form, C || IV(16) || N(12), where C ends in the 16-byte tag.
It names neither key nor cipher. Older releases wrapped the same parts in an envelope, which is told by its first byte:

    {     JSON, v0.1 to v0.18 (generations 0 to 2): {"aead","id"?,"iv","nonce","bytes"}, the byte fields in base64
    0x95  MessagePack, v0.19 to 2024-01-11 (generations 3 and 4): an array of five, [algorithm, id, iv, nonce, C]

The id, 16 bytes of SHA-256 of the key in hex, was never authenticated and is not looked at. Source: the
output of every generation of the original (tests/vectors/golden).
"""

from typing import Annotated, Literal, NamedTuple

import msgspec

from keswick.crypto.algorithms import AES256, CHACHA20, algorithm_from_name
from keswick.encoding import b64decode_go, json_object

_IV_SIZE = 16
_NONCE_SIZE = 12

AES256_2019 = "AES-256-GCM"
"""AES with the message key derived as v0.1 to v0.6.0 did; the name is that of their `aead`."""

_BY_AEAD = {"AES-256-GCM-HMAC-SHA-256": AES256, "ChaCha20Poly1305": CHACHA20, AES256_2019: AES256_2019}


class Envelope(NamedTuple):
    """What an envelope holds: AES256, CHACHA20 or AES256_2019, and the sealed text in the raw form."""

    algorithm: str
    sealed: bytes


def parse_envelope(ciphertext: bytes) -> Envelope | None:
    """Read a ciphertext as an envelope; None when it is not a sound one and so has to be a raw one.

    One raw text in 128 begins with the first byte of an envelope, by chance.
    """
    try:
        match ciphertext[:1]:
            case b"{":
                return _parse_json(ciphertext)
            case b"\x95":
                return _parse_msgpack(ciphertext)
            case _:
                return None
    except (ValueError, msgspec.DecodeError):
        return None


def _parse_json(ciphertext: bytes) -> Envelope:
    match json_object(ciphertext):
        case {"aead": str(aead), "iv": str(iv), "nonce": str(nonce), "bytes": str(text)} if aead in _BY_AEAD:
            iv_bytes, nonce_bytes = b64decode_go(iv), b64decode_go(nonce)
            if len(iv_bytes) == _IV_SIZE and len(nonce_bytes) == _NONCE_SIZE:
                return Envelope(_BY_AEAD[aead], b64decode_go(text) + iv_bytes + nonce_bytes)
    raise ValueError("not a JSON ciphertext")


_MSGPACK = msgspec.msgpack.Decoder(
    tuple[
        Literal["AES256", "AES256-GCM_SHA256", "ChaCha20", "XCHACHA20-POLY1305"],
        str,
        Annotated[bytes, msgspec.Meta(min_length=_IV_SIZE, max_length=_IV_SIZE)],
        Annotated[bytes, msgspec.Meta(min_length=_NONCE_SIZE, max_length=_NONCE_SIZE)],
        bytes,
    ]
)


def _parse_msgpack(ciphertext: bytes) -> Envelope:
    algorithm, _, iv, nonce, text = _MSGPACK.decode(ciphertext)
    return Envelope(algorithm_from_name(algorithm), text + iv + nonce)
