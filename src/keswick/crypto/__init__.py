"""Secret keys: sealing and opening, and every form in which keys and ciphertexts have been stored."""

from keswick.crypto.algorithms import AES256, CHACHA20, algorithm_from_name
from keswick.crypto.key import DecryptionError, SecretKey
from keswick.crypto.stored import KEY_SIZE, KeyFormatError, NoHMACKeyError

__all__ = [
    "AES256",
    "CHACHA20",
    "KEY_SIZE",
    "DecryptionError",
    "KeyFormatError",
    "NoHMACKeyError",
    "SecretKey",
    "algorithm_from_name",
]
