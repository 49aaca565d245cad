"""A passphrase or a key file: this process wraps the root key itself, under a key derived from what they hold."""

import os
from collections.abc import Sequence

from keswick.encoding import b64decode_go
from keswick.keystore.contract import KeyStoreError
from keswick.keystore.sealing import KEY_SIZE, LABEL, derive
from keswick.keystore.seals import files
from keswick.keystore.seals.header import BINDING, ByKeyFile, ByPassphrase, Scrypt, Wrapped

SCRYPT = (1 << 17, 8, 1)
"""n, r and p of new headers: 128 MiB, and about a quarter of a second."""

_KEY_FILE = LABEL + b": key file" + bytes([1])
_ONE_USE = bytes(12)
"""The nonce: each wrapping has a salt, and so a key, of its own."""


class PassphraseSeal:
    kind = "passphrase"

    def __init__(self, path: str, setting: str) -> None:
        """`path`: of the file that holds it; `setting`: what names it."""
        self._path = path
        self._setting = setting

    def wrap(self, key: bytes) -> Wrapped:
        kdf = Scrypt("scrypt", *SCRYPT, os.urandom(32))
        wrap_key, check = self._derived(kdf)
        return ByPassphrase(kdf, check, _wrap(wrap_key, key))

    def unwrap(self, wrapped: Wrapped) -> bytes:
        assert isinstance(wrapped, ByPassphrase)
        key = _unwrap(self._derived(wrapped.kdf), wrapped)
        if key is None:
            raise KeyStoreError(
                f"the passphrase in '{self._path}' is wrong: let '{self._setting}' name the one that it was sealed with"
            )
        return key

    def warnings(self) -> Sequence[str]:
        return files.warnings(self._path)

    def _derived(self, kdf: Scrypt) -> tuple[bytes, bytes]:
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt as Derivation

        passphrase = files.read_line(self._path, self._setting)
        try:
            derived = Derivation(kdf.salt, 2 * KEY_SIZE, kdf.n, kdf.r, kdf.p).derive(passphrase)
        except MemoryError:
            mebibytes = 128 * kdf.n * kdf.r >> 20
            raise KeyStoreError(f"a passphrase takes {mebibytes} MiB of memory for a moment: allow for it") from None
        return derived[:KEY_SIZE], derived[KEY_SIZE:]


class KeyFileSeal:
    kind = "keyfile"

    def __init__(self, path: str) -> None:
        self._path = path

    def wrap(self, key: bytes) -> Wrapped:
        salt = os.urandom(32)
        wrap_key, check = derive(self._key(), salt, _KEY_FILE)
        return ByKeyFile(salt, check, _wrap(wrap_key, key))

    def unwrap(self, wrapped: Wrapped) -> bytes:
        assert isinstance(wrapped, ByKeyFile)
        key = _unwrap(derive(self._key(), wrapped.salt, _KEY_FILE), wrapped)
        if key is None:
            raise KeyStoreError(
                f"the key in '{self._path}' is another one: let 'keyfile.path' name the one that it was sealed with"
            )
        return key

    def warnings(self) -> Sequence[str]:
        return files.warnings(self._path)

    def _key(self) -> bytes:
        content = files.read(self._path, "keyfile.path")
        if len(content) == KEY_SIZE:
            return content
        try:
            key = b64decode_go(content.strip())
        except ValueError:
            key = b""
        if len(key) != KEY_SIZE:
            raise KeyStoreError(
                f"'keyfile.path': '{self._path}' holds no key, which is {KEY_SIZE} random bytes, or base64 of them: "
                f"make one with 'head -c {KEY_SIZE} /dev/urandom >FILE'"
            )
        return key


def credential(name: str) -> str:
    """The path of a credential of systemd. Raises KeyStoreError."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if "/" in name or name in (".", ".."):
        raise KeyStoreError(f"'credential.name': '{name}' is no name of a credential; it has no '/'")
    if not folder:
        raise KeyStoreError(
            f"the passphrase is the systemd credential '{name}', and this process has been given none: run it as a "
            f"unit with 'LoadCredential={name}:/path/of/the/file'"
        )
    return os.path.join(folder, name)


def _wrap(wrap_key: bytes, key: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(wrap_key).encrypt(_ONE_USE, key, BINDING)


def _unwrap(derived: tuple[bytes, bytes], wrapped: ByPassphrase | ByKeyFile) -> bytes | None:
    """None when it was wrapped with something else, or has been changed."""
    from hmac import compare_digest

    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    wrap_key, check = derived
    if not compare_digest(check, wrapped.check):
        return None
    try:
        return AESGCM(wrap_key).decrypt(_ONE_USE, wrapped.root_key, BINDING)
    except InvalidTag:
        return None
