"""Writes the vectors of encrypted folders anew, from docs/formats.md alone: `python tests/vectors/encryptedfs/make.py`.

It shares no code with Keswick, so that both would have to err in the same way.
"""

import hashlib
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

FOLDER = Path(__file__).parent
LABEL = b"keswick encrypted folder"
KEYS = {
    "my-key": b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}',
    "A_key-of-the-longest-name-0123456789012345678901234567890123456789012345678901234": b"x" * 208,
    "key.of 2020: schlüssel": b"a value that is no key",
    "empty": b"",
}
PASSPHRASE = "Doppelgänger batteries".encode()
KEY_FILE = bytes(range(32))
TOKEN_KEY = bytes(range(32, 64))


def drawn(what: str, size: int = 32) -> bytes:
    """In place of random bytes."""
    return hashlib.sha256(what.encode()).digest()[:size]


def derived(key: bytes, salt: bytes, info: bytes) -> tuple[bytes, bytes]:
    both = HKDF(algorithm=hashes.SHA256(), length=64, salt=salt, info=info).derive(key)
    return both[:32], both[32:]


def sealed(root: bytes, name: str, value: bytes) -> bytes:
    salt = drawn(f"salt of {name}")
    key, check = derived(root, salt, LABEL + b": file" + b"\x01")
    begin = bytes.fromhex("894b46530d0a1a0a") + b"\x01" + salt + check
    return begin + AESGCM(key).encrypt(bytes(12), value, begin + name.encode())


def wrapped(wrap_key: bytes, root: bytes, nonce: bytes = bytes(12)) -> str:
    return text(AESGCM(wrap_key).encrypt(nonce, root, LABEL + b"\x01"))


def text(data: bytes) -> str:
    return b64encode(data).decode()


def by_passphrase(root: bytes, n: int, r: int, p: int) -> dict[str, Any]:
    salt = drawn("salt of the passphrase")
    both = Scrypt(salt, 64, n, r, p).derive(PASSPHRASE)
    kdf = {"name": "scrypt", "n": n, "r": r, "p": p, "salt": text(salt)}
    return {"kind": "passphrase", "kdf": kdf, "check": text(both[32:]), "root_key": wrapped(both[:32], root)}


def by_key_file(root: bytes) -> dict[str, Any]:
    salt = drawn("salt of the key file")
    key, check = derived(KEY_FILE, salt, LABEL + b": key file" + b"\x01")
    return {"kind": "keyfile", "salt": text(salt), "check": text(check), "root_key": wrapped(key, root)}


def by_token(root: bytes) -> dict[str, Any]:
    nonce = drawn("nonce of the token", 12)
    return {"kind": "pkcs11", "key": "vector", "nonce": text(nonce), "root_key": wrapped(TOKEN_KEY, root, nonce)}


def backup(files: dict[str, bytes]) -> bytes:
    header, *names = sorted(files, key=lambda name: (name != ".keswick-folder", name.encode()))
    data = bytes.fromhex("894b424b0d0a1a0a") + b"\x01"
    for name in (header, *names):
        encoded, content = name.encode(), files[name]
        data += len(encoded).to_bytes(2, "big") + len(content).to_bytes(4, "big") + encoded + content
    data += bytes(2) + len(names).to_bytes(4, "big")
    return data + hashlib.sha256(data).digest()


def folder(name: str, opened_with: dict[str, str], seal: dict[str, Any], root: bytes) -> dict[str, Any]:
    check, _ = derived(root, b"", LABEL + b": root key" + b"\x01")
    header = {"format": "keswick encrypted folder", "version": 1, "root_check": text(check), "seal": seal}
    files = {".keswick-folder": json.dumps(header, separators=(",", ":")).encode() + b"\n"}
    files |= {key: sealed(root, key, value) for key, value in KEYS.items()}
    return {
        "name": name,
        "opened_with": opened_with,
        "files": {file: text(content) for file, content in files.items()},
        "keys": {key: text(value) for key, value in KEYS.items()},
        "backup": text(backup(files)),
    }


def folders() -> list[dict[str, Any]]:
    root = drawn("root key")
    passphrase = {"passphrase": text(PASSPHRASE)}
    return [
        folder("passphrase", passphrase, by_passphrase(root, 1 << 17, 8, 1), root),
        folder("passphrase with little memory", passphrase, by_passphrase(root, 1 << 10, 4, 3), root),
        folder("key file", {"keyfile": text(KEY_FILE)}, by_key_file(root), root),
        folder("token", {"token_key": text(TOKEN_KEY)}, by_token(root), root),
    ]


if __name__ == "__main__":
    (FOLDER / "folders.json").write_text(json.dumps(folders(), indent=1, ensure_ascii=False) + "\n")
