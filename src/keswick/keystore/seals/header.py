"""The header of an encrypted folder: which root key it has, and how that is wrapped. docs/formats.md describes it.

Whoever can write to the folder can plant one, so that it is read strictly and within bounds.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

FILE = ".keswick-folder"
"""Its name, which no key can have."""
FORMAT = "keswick encrypted folder"
VERSION = 1
BINDING = FORMAT.encode() + bytes([VERSION])
"""What a wrapped root key is bound to, so that nothing else that a seal has made is one."""
MAX_SIZE = 64 << 10
"""Bytes."""

_MOST_MEMORY = 1 << 30
_MOST_WORK = 1 << 32
"""Bytes that scrypt may fill, at once and in all."""

_Salt = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Check = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Wrapped = Annotated[bytes, Meta(min_length=48, max_length=48)]
"""A root key and a tag."""
_Label = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
"""For people to read, on a terminal, too."""


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What is no JSON, or nested very deeply."""


class HeaderError(ValueError):
    """It cannot be read. The text goes on after the name of the file."""


class _Part(msgspec.Struct, forbid_unknown_fields=True, frozen=True, tag_field="kind"):
    pass


class Scrypt(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """RFC 7914."""

    name: Literal["scrypt"]
    n: Annotated[int, Meta(ge=2, le=1 << 20)]
    r: Annotated[int, Meta(ge=1, le=32)]
    p: Annotated[int, Meta(ge=1, le=16)]
    salt: _Salt

    def check(self) -> None:
        """Raises HeaderError if it takes more than any server should give."""
        memory = 128 * self.n * self.r
        if self.n & (self.n - 1) or self.n >> 16 * self.r or memory > _MOST_MEMORY or memory * self.p > _MOST_WORK:
            raise HeaderError(
                f"asks for scrypt with n={self.n}, r={self.r}, p={self.p}, which is beyond all bounds: it has been "
                "changed; restore it"
            )


class ByPassphrase(_Part, frozen=True, tag="passphrase"):
    kdf: Scrypt
    check: _Check
    root_key: _Wrapped


class ByKeyFile(_Part, frozen=True, tag="keyfile"):
    salt: _Salt
    check: _Check
    root_key: _Wrapped


class ByTransit(_Part, frozen=True, tag="transit"):
    key: _Label
    ciphertext: Annotated[str, Meta(min_length=1, max_length=16384)]


class ByToken(_Part, frozen=True, tag="pkcs11"):
    key: _Label
    nonce: Annotated[bytes, Meta(min_length=12, max_length=12)]
    root_key: _Wrapped


Wrapped = ByPassphrase | ByKeyFile | ByTransit | ByToken
"""A root key, wrapped by one of the seals."""


def kind(wrapped: Wrapped) -> str:
    """Of the seal."""
    return str(wrapped.__struct_config__.tag)


class Header(msgspec.Struct, frozen=True):
    root_check: bytes
    """Of the root key; tells whether another header is about the same."""
    seal: Wrapped


class _Header(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    format: str
    version: int
    root_check: _Check
    seal: Wrapped


class _Begin(msgspec.Struct, frozen=True):
    """What the header of every version has."""

    format: str
    version: int


def encode(header: Header) -> str:
    return msgspec.json.encode(_Header(FORMAT, VERSION, header.root_check, header.seal)).decode() + "\n"


def decode(content: bytes) -> Header:
    """Raises HeaderError."""
    try:
        begin = msgspec.json.decode(content, type=_Begin) if len(content) <= MAX_SIZE else None
    except _UNREADABLE:
        begin = None
    if begin is None or begin.format != FORMAT:
        raise HeaderError("is no header of an encrypted folder, or is damaged: restore it")
    if begin.version != VERSION:
        raise HeaderError(f"is of version {begin.version}: a newer release of Keswick reads it")
    try:
        found = msgspec.json.decode(content, type=_Header)
    except _UNREADABLE as error:
        raise HeaderError(f"is damaged ({error}): restore it") from None
    if isinstance(found.seal, ByPassphrase):
        found.seal.kdf.check()
    return Header(found.root_check, found.seal)
