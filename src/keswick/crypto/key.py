"""The secret key: what seals and opens, and what a key store keeps."""

import os
import time
from hashlib import sha256

from keswick._native import SealingKey, hmac_sha256
from keswick.crypto import stored
from keswick.crypto.algorithms import AES256
from keswick.crypto.ciphertext import AES256_2019, parse_envelope
from keswick.crypto.stored import KEY_SIZE, NoHMACKeyError, StoredKey
from keswick.encoding import rfc3339


class DecryptionError(ValueError):
    """A ciphertext cannot be opened: it, its context or the key is another. Nobody can say which."""

    def __init__(self) -> None:
        super().__init__("the ciphertext is not authentic")


class SecretKey:
    """One named key of the server: 32 bytes for a cipher and, if it was made since 2024, 32 bytes for HMACs. Immutable.

    `context` is associated data: any bytes, which have to be the same to decrypt; absent is empty.
    """

    __slots__ = ("_sealing_key", "_stored")

    def __init__(self, key: StoredKey) -> None:
        self._stored = key
        self._sealing_key = SealingKey(self.algorithm, key.key)

    @classmethod
    def generate(cls, created_by: str) -> "SecretKey":
        """A new random key, for AES."""
        return cls.of(os.urandom(KEY_SIZE), AES256, created_by)

    @classmethod
    def of(cls, key: bytes, algorithm: str, created_by: str) -> "SecretKey":
        """A new key of the given 32 bytes, with a random HMAC key. ValueError when size or algorithm is wrong."""
        now = rfc3339(time.time_ns())
        return cls(StoredKey(key, algorithm, os.urandom(KEY_SIZE), now, created_by))

    @classmethod
    def decode(cls, value: bytes) -> "SecretKey":
        """Read a stored key of any generation. Raises KeyFormatError."""
        return cls(stored.decode(value))

    def encode(self) -> bytes:
        """The stored key in today's form, which cannot hold a key without an HMAC key: that raises NoHMACKeyError."""
        return stored.encode(self._stored)

    @property
    def algorithm(self) -> str:
        """AES256 or CHACHA20."""
        return self._stored.algorithm or AES256

    @property
    def id(self) -> str:
        """32 hex digits, by which servers of 2022 and 2023 told keys apart: the beginning of the key's SHA-256."""
        return sha256(self._stored.key).hexdigest()[:32]

    @property
    def created_at(self) -> str:
        """RFC 3339, as it was stored; the year 1 when that is unknown."""
        return self._stored.created_at

    @property
    def created_by(self) -> str:
        """The identity that made the key; empty when that is unknown."""
        return self._stored.created_by

    def __repr__(self) -> str:
        return f"<SecretKey {self.algorithm} created_at={self.created_at!r} created_by={self.created_by!r}>"

    def encrypt(self, plaintext: bytes, context: bytes) -> bytes:
        """Seal; the ciphertext is 44 bytes longer."""
        return self._sealing_key.seal(plaintext, context)

    def generate_data_key(self, context: bytes) -> tuple[bytes, bytes]:
        """32 new random bytes, and their ciphertext."""
        return self._sealing_key.generate(context)

    def decrypt(self, ciphertext: bytes, context: bytes) -> bytes:
        """Open a ciphertext of any generation. Raises DecryptionError."""
        try:
            if ciphertext[:1] in (b"{", b"\x95"):
                return self._open_enveloped(ciphertext, context)
            return self._sealing_key.open(ciphertext, context)
        except ValueError:
            raise DecryptionError from None

    def hmac(self, message: bytes) -> bytes:
        """HMAC-SHA-256, 32 bytes. Raises NoHMACKeyError."""
        if self._stored.hmac_key is None:
            raise NoHMACKeyError
        return hmac_sha256(self._stored.hmac_key, message)

    def _open_enveloped(self, ciphertext: bytes, context: bytes) -> bytes:
        envelope = parse_envelope(ciphertext)
        if envelope is None:
            return self._sealing_key.open(ciphertext, context)
        if envelope.algorithm == AES256_2019:
            return self._sealing_key.open_2019(envelope.sealed, context)
        try:
            return self._sealing_key.open(envelope.sealed, context)
        except ValueError:
            # The key's own cipher decides, not the envelope's. But before keys had a cipher, each text was sealed with
            # the one that suited the processor of that day.
            if self._stored.algorithm is not None or envelope.algorithm == self.algorithm:
                raise
            return SealingKey(envelope.algorithm, self._stored.key).open(envelope.sealed, context)
