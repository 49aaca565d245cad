"""Values sealed for an encrypted folder: each under a key of its own, derived from the root key, and bound to its name.

    magic ‖ version ‖ salt ‖ check ‖ AES-256-GCM(file key, the value; with all before it and the name) ‖ tag

docs/formats.md describes the format byte by byte. Nothing here opens a file.
"""

import os
import threading

from keswick.keystore.contract import KeyStoreError

MAGIC = b"\x89KFS\r\n\x1a\n"
"""No text begins so, and no stored key does."""
VERSION = 1
KEY_SIZE = 32
LABEL = b"keswick encrypted folder"
OVERHEAD = len(MAGIC) + 1 + 32 + 32 + 16
"""Bytes that a sealed value is longer than the value."""

_BEGIN = MAGIC + bytes([VERSION])
_SALT = slice(len(_BEGIN), len(_BEGIN) + 32)
_CHECK = slice(_SALT.stop, _SALT.stop + 32)
_ROOT = LABEL + b": root key" + bytes([VERSION])
_FILE = LABEL + b": file" + bytes([VERSION])
_ONE_USE = bytes(12)
"""The nonce: a key that is derived with a random salt seals once."""


class SealedValueError(ValueError):
    """A value cannot be opened. The text goes on after the name of its file: what is wrong, and what to do."""


class RootKey:
    """The 32 bytes from which all keys of an encrypted folder are derived. Its memory is wiped when it is closed."""

    __slots__ = ("_key", "_using", "check")

    def __init__(self, key: bytes) -> None:
        """ValueError unless there are 32 bytes."""
        if len(key) != KEY_SIZE:
            raise ValueError(f"a root key has {KEY_SIZE} bytes, not {len(key)}")
        self._key = bytearray(key)
        self._using = threading.Lock()
        """So that nothing is sealed with what is being wiped."""
        self.check, _ = derive(self._key, b"", _ROOT)
        """Of 32 bytes; no other key has it. It may be known."""

    @classmethod
    def new(cls) -> "RootKey":
        return cls(os.urandom(KEY_SIZE))

    def expose(self) -> bytes:
        """To be wrapped."""
        return bytes(self._key)

    def seal(self, name: str, value: bytes) -> bytes:
        """The content of the file `name`."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        salt = os.urandom(32)
        key, check = self._derived(salt)
        header = _BEGIN + salt + check
        return header + AESGCM(key).encrypt(_ONE_USE, value, header + name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """The value in the file `name`. Raises SealedValueError."""
        from hmac import compare_digest

        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        check_form(sealed)
        key, check = self._derived(sealed[_SALT])
        if not compare_digest(check, sealed[_CHECK]):
            raise SealedValueError(
                "was sealed in another encrypted folder, or has been changed: restore it, or move it away"
            )
        try:
            return AESGCM(key).decrypt(_ONE_USE, sealed[_CHECK.stop :], sealed[: _CHECK.stop] + name.encode())
        except InvalidTag:
            raise SealedValueError(
                "has been changed, or is the file of another key under this name: restore it, or move it away"
            ) from None

    def close(self) -> None:
        with self._using:
            self._key[:] = bytes(len(self._key))
            self._key.clear()

    def _derived(self, salt: bytes) -> tuple[bytes, bytes]:
        with self._using:
            if not self._key:
                raise KeyStoreError("the encrypted folder has been closed")
            return derive(self._key, salt, _FILE)

    def __repr__(self) -> str:
        return "RootKey(<redacted>)"


def is_sealed(content: bytes) -> bool:
    """Whether a file begins as a sealed one, of any version, or has been cut off before that can be seen."""
    return content.startswith(MAGIC) or MAGIC.startswith(content)


def check_form(content: bytes) -> None:
    """Whether it may be a sealed value, as far as can be seen without a key. Raises SealedValueError."""
    if not is_sealed(content):
        raise SealedValueError("is not sealed: move it away, or bring it in with 'kes migrate' if it is a key")
    if content[len(MAGIC) : len(_BEGIN)] not in (b"", bytes([VERSION])):
        raise SealedValueError(f"is sealed in version {content[len(MAGIC)]}: a newer release of Keswick reads it")
    if len(content) < OVERHEAD:
        raise SealedValueError("has been cut off: restore it, or move it away")


def derive(key: bytes | bytearray, salt: bytes, info: bytes) -> tuple[bytes, bytes]:
    """A key of 32 bytes, and 32 more that commit to what both come from."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived = HKDF(SHA256(), KEY_SIZE + 32, salt, info).derive(key)
    return derived[:KEY_SIZE], derived[KEY_SIZE:]
