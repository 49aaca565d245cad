"""Sealed files: any number of bytes under a data key of its own, which travels with them, sealed by the server.

    header       what the file is, the name of the server's key, the sealed data key, a salt
    header tag   32 bytes that nobody can make for another header or another data key
    chunks       AES-256-GCM, all of one size but the last, each sealed for its place, the last as the last

The keys of a file are derived from its data key and its whole header, so that every chunk is bound to the header. The
chunks are STREAM (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance, 2015). docs/formats.md describes the format byte by byte.

Nothing here calls a server or opens a file: what is to be sealed is read with a function such as `file.read`, and what
comes out is iterated over, a chunk at a time.
"""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from keswick.names import is_stored_name

Read = Callable[[int], bytes | None]
"""Up to so many bytes; none at the end. None, when it does not wait for any, is an error."""

MAGIC = b"\x89KSW\r\n\x1a\n"  # no text begins so, and what is moved as text does not survive it
VERSION = 1
AES256_GCM = 1

MIN_CHUNK_SIZE = 1 << 10
MAX_CHUNK_SIZE = 16 << 20
DEFAULT_CHUNK_SIZE = 64 << 10
"""Bytes of plaintext. Larger ones are no faster, and all of a chunk is in memory before any of it is let out."""

DATA_KEY_SIZE = 32
MAX_SEALED_KEY = 4096
"""Bytes; the oldest forms, which are JSON, have about 300."""

_MAX_CHUNKS = 1 << 32  # with chunks of 16 MiB still far from what AES-GCM may seal under one key
_SALT_SIZE = _HEADER_TAG_SIZE = 32
_TAG_SIZE = 16
_LABEL = b"keswick sealed file"
_BEGIN = struct.Struct(">8sBBIBH")


class SealError(ValueError):
    """A file cannot be unsealed. The text says why, and what to do."""


class NotSealed(SealError):
    """It does not begin as a sealed file does."""


class UnsupportedVersion(SealError):
    """It is of a version, or sealed with a cipher, that this release does not know."""


class HeaderChanged(SealError):
    """Its header, or the sealed data key in it, is not the one that it was sealed with."""

    def __init__(self) -> None:
        super().__init__("the header of this sealed file has been changed: get the file anew from where it was kept")


class DataKeyRefused(SealError):
    """The server does not open its data key: the context is another, or the header was changed, or the server's key is
    another one of that name."""

    def __init__(self, key_name: str) -> None:
        super().__init__(
            f"the server does not open the data key of this sealed file with the key '{key_name}': give the context "
            "that it was sealed with; if it is, the file's header was changed, or the key was deleted and made anew"
        )


class Tampered(SealError):
    """It is not what was sealed: chunks were changed, moved, left out or added."""


class Truncated(Tampered):
    """It has no end: something was cut off."""


class Header(NamedTuple):
    """What stands before the chunks."""

    key_name: str
    """Of the server's key that seals the data key."""
    sealed_key: bytes
    """The data key, as the server gave it."""
    chunk_size: int
    """Bytes of plaintext in each chunk but the last."""
    salt: bytes
    """32 random bytes, so that no two files have the same keys even if their data keys were the same."""

    @classmethod
    def new(cls, key_name: str, sealed_key: bytes, chunk_size: int = DEFAULT_CHUNK_SIZE) -> "Header":
        """With a random salt. ValueError if a file cannot have such a header."""
        check_chunk_size(chunk_size)
        if not is_stored_name(key_name):
            raise ValueError(f"a sealed file cannot hold the key name {key_name!r}: it is empty, too long or a path")
        if not 0 < len(sealed_key) <= MAX_SEALED_KEY:
            size = len(sealed_key)
            raise ValueError(f"a sealed file cannot hold a sealed data key of {size} bytes, only 1 to {MAX_SEALED_KEY}")
        return cls(key_name, sealed_key, chunk_size, os.urandom(_SALT_SIZE))

    @classmethod
    def read(cls, read: Read) -> tuple["Header", bytes]:
        """The header of a sealed file and its tag, which `PayloadKey.check` checks. Raises SealError."""
        begin = _read_all(read, _BEGIN.size)
        if begin[: len(MAGIC)] != MAGIC:
            if begin and MAGIC.startswith(begin):
                raise Truncated("this sealed file ends within its header: get the whole file from where it was kept")
            raise NotSealed(
                "this is not a sealed file: it does not begin as one; perhaps it was never sealed, or was "
                "transferred as text"
            )
        if len(begin) > len(MAGIC) and begin[8] != VERSION:
            raise UnsupportedVersion(f"this sealed file is of version {begin[8]}: a newer release of Keswick reads it")
        if len(begin) > len(MAGIC) + 1 and begin[9] != AES256_GCM:
            raise UnsupportedVersion(
                f"this sealed file uses the unknown cipher {begin[9]}: a newer release of Keswick reads it"
            )
        if len(begin) < _BEGIN.size:
            raise Truncated("this sealed file ends within its header: get the whole file from where it was kept")
        *_, chunk_size, name_size, sealed_size = _BEGIN.unpack(begin)
        if not (MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE and name_size and 0 < sealed_size <= MAX_SEALED_KEY):
            raise HeaderChanged
        rest = _read_all(read, name_size + sealed_size + _SALT_SIZE + _HEADER_TAG_SIZE)
        if len(rest) < name_size + sealed_size + _SALT_SIZE + _HEADER_TAG_SIZE:
            raise Truncated("this sealed file ends within its header: get the whole file from where it was kept")
        try:
            name = rest[:name_size].decode()
        except UnicodeDecodeError:
            name = ""
        if not is_stored_name(name):
            raise HeaderChanged
        sealed_key = rest[name_size : name_size + sealed_size]
        salt = rest[-_SALT_SIZE - _HEADER_TAG_SIZE : -_HEADER_TAG_SIZE]
        return cls(name, sealed_key, chunk_size, salt), rest[-_HEADER_TAG_SIZE:]

    def encode(self) -> bytes:
        name = self.key_name.encode()
        begin = _BEGIN.pack(MAGIC, VERSION, AES256_GCM, self.chunk_size, len(name), len(self.sealed_key))
        return begin + name + self.sealed_key + self.salt


class PayloadKey:
    """What seals and opens the chunks of the one file with this header. It does not keep the data key."""

    __slots__ = ("_aead", "tag")

    def __init__(self, header: Header, data_key: bytes) -> None:
        """Raises HeaderChanged if the data key is none: another ciphertext stands in its place."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        if len(data_key) != DATA_KEY_SIZE:
            raise HeaderChanged
        info = _LABEL + header.encode()
        derived = HKDF(SHA256(), DATA_KEY_SIZE + _HEADER_TAG_SIZE, header.salt, info).derive(data_key)
        self._aead = AESGCM(derived[:DATA_KEY_SIZE])
        self.tag = derived[DATA_KEY_SIZE:]
        """Stands behind the header, and commits to it and to the data key: no other pair of them has this tag."""

    def check(self, tag: bytes) -> None:
        """Raises HeaderChanged unless the file that is read has this tag."""
        from hmac import compare_digest

        if not compare_digest(tag, self.tag):
            raise HeaderChanged

    def seal(self, number: int, plaintext: bytes, *, last: bool) -> bytes:
        return self._aead.encrypt(_nonce(number, last), plaintext, None)

    def open(self, number: int, sealed: bytes, *, last: bool) -> bytes | None:
        """None when it is not authentic at this place."""
        from cryptography.exceptions import InvalidTag

        try:
            return self._aead.decrypt(_nonce(number, last), sealed, None)
        except InvalidTag:
            return None

    def __repr__(self) -> str:
        return "PayloadKey(<redacted>)"


def seal(read: Read, header: Header, key: PayloadKey) -> Iterator[bytes]:
    """The sealed file, piece by piece."""
    yield header.encode() + key.tag
    for number, (plaintext, last) in enumerate(_chunks(read, header.chunk_size)):
        if number == _MAX_CHUNKS:
            raise ValueError("this is too much for one sealed file with chunks of this size: choose a larger size")
        yield key.seal(number, plaintext, last=last)


def unseal(read: Read, header: Header, key: PayloadKey) -> Iterator[bytes]:
    """The plaintext of the chunks that follow the header, piece by piece. Each piece is authentic, in its place; but
    only when all have come without a SealError they are the whole file."""
    for number, (sealed, last) in enumerate(_chunks(read, header.chunk_size + _TAG_SIZE)):
        plaintext = key.open(number, sealed, last=last)
        if plaintext is None or (number and not plaintext):
            raise _explained(key, number, sealed, last, full=len(sealed) == header.chunk_size + _TAG_SIZE)
        yield plaintext


def check_chunk_size(size: int) -> None:
    if not MIN_CHUNK_SIZE <= size <= MAX_CHUNK_SIZE:
        raise ValueError(
            f"a chunk size of {size} is not between {MIN_CHUNK_SIZE} (1 KiB) and {MAX_CHUNK_SIZE} (16 MiB)"
        )


def _explained(key: PayloadKey, number: int, sealed: bytes, last: bool, *, full: bool) -> Tampered:
    """Why a chunk did not open, as far as that can be told."""
    advice = "do not use what came before it, and get the whole file anew from where it was kept"
    if last and (len(sealed) < _TAG_SIZE or key.open(number, sealed, last=False) is not None):
        return Truncated(f"this sealed file has been cut off, it has no end: {advice}")
    if not last and key.open(number, sealed, last=True) is not None:
        return Tampered(f"something has been appended to this sealed file: {advice}")
    where = f"in chunk {number + 1} this sealed file has been changed"
    if last and not full:
        where += ", or cut off"
    return Tampered(f"{where}: {advice}")


def _chunks(read: Read, size: int) -> Iterator[tuple[bytes, bool]]:
    """Pieces of `size` bytes and whether each is the last, which may be shorter; of nothing, one empty piece."""
    piece = _read_all(read, size)
    while len(piece) == size and (following := _read_all(read, size)):
        yield piece, False
        piece = following
    yield piece, True


def _read_all(read: Read, size: int) -> bytes:
    """As many bytes as that, fewer only at the end, from what may give them in smaller portions."""
    pieces, missing = [], size
    while missing:
        piece = read(missing)
        if piece is None:
            raise BlockingIOError(errno.EAGAIN, "what is to be sealed or unsealed has nothing now, and does not wait")
        if not isinstance(piece, bytes):
            raise TypeError("what is to be sealed or unsealed must be open for reading bytes")
        if len(piece) > missing:
            raise ValueError(f"what is to be sealed or unsealed gave {len(piece)} bytes when asked for {missing}")
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
