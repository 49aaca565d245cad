"""Writes the vectors of sealed files anew, from docs/formats.md alone: `python tests/vectors/envelope/make.py`.

It shares no code with Keswick, so that both would have to err in the same way.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FOLDER = Path(__file__).parent
MAGIC = bytes.fromhex("894b53570d0a1a0a")
PATTERN = bytes(range(251))  # a prime number of bytes, so that no two chunks of a case are alike
DATA_KEY = bytes(range(32))
SEALED_KEY = hashlib.sha512(b"what a server sealed").digest() + bytes(12)  # 76 bytes, as many as a real one
SALT = hashlib.sha256(b"salt").digest()
KIB = 1024


def plaintext(length: int) -> bytes:
    return (PATTERN * (length // len(PATTERN) + 1))[:length]


def header_of(
    *,
    magic: bytes = MAGIC,
    version: int = 1,
    aead: int = 1,
    chunk_size: int = KIB,
    name: bytes = b"my-key",
    sealed_key: bytes = SEALED_KEY,
    salt: bytes = SALT,
) -> bytes:
    return (
        magic
        + bytes([version, aead])
        + chunk_size.to_bytes(4, "big")
        + len(name).to_bytes(1, "big")
        + len(sealed_key).to_bytes(2, "big")
        + name
        + sealed_key
        + salt
    )


def keys_of(header: bytes, data_key: bytes) -> tuple[bytes, bytes]:
    """The payload key and the header tag."""
    salt = header[-32:]
    info = b"keswick sealed file" + header
    derived = HKDF(algorithm=hashes.SHA256(), length=64, salt=salt, info=info).derive(data_key)
    return derived[:32], derived[32:]


def chunk_of(key: bytes, number: int, last: int, text: bytes) -> bytes:
    return AESGCM(key).encrypt(number.to_bytes(11, "big") + bytes([last]), text, None)


def seal(header: bytes, chunk_size: int, text: bytes, data_key: bytes = DATA_KEY) -> bytes:
    key, tag = keys_of(header, data_key)
    pieces = [text[i : i + chunk_size] for i in range(0, len(text), chunk_size)] or [b""]
    chunks = [chunk_of(key, number, number == len(pieces) - 1, piece) for number, piece in enumerate(pieces)]
    return header + tag + b"".join(chunks)


def good() -> list[dict[str, Any]]:
    cases = []

    def add(
        name: str, length: int, chunk_size: int = KIB, key_name: str = "my-key", sealed_key: bytes = SEALED_KEY
    ) -> None:
        header = header_of(chunk_size=chunk_size, name=key_name.encode(), sealed_key=sealed_key)
        sealed = seal(header, chunk_size, plaintext(length))
        case = {
            "name": name,
            "data_key": DATA_KEY.hex(),
            "key_name": key_name,
            "sealed_key": sealed_key.hex(),
            "chunk_size": chunk_size,
            "salt": SALT.hex(),
            "plaintext": {"pattern": PATTERN.hex(), "length": length},
            "length": len(sealed),
            "sha256": hashlib.sha256(sealed).hexdigest(),
        }
        if len(sealed) < 2 * KIB:
            case["sealed"] = sealed.hex()
        cases.append(case)

    add("empty", 0)
    add("one byte", 1)
    add("one byte less than a chunk", KIB - 1)
    add("one chunk", KIB)
    add("one byte more than a chunk", KIB + 1)
    add("three chunks", 3 * KIB)
    add("three chunks and a bit", 3 * KIB + 5)
    add("300 chunks, so that the counter needs two bytes", 299 * KIB + 7)
    add("the usual chunk size", 200_000, 64 * KIB)
    add("a chunk size that is no power of two", 5_000, 1_500)
    add("the largest chunk size", 100, 16 * KIB * KIB)
    add("a name that is not ASCII", 10, key_name="Schlüssel-鍵")
    add("the longest name", 10, key_name="k" * 255)
    add("the shortest sealed key", 10, sealed_key=b"\x00")
    add(
        "a sealed key of the oldest form",
        10,
        sealed_key=b'{"aead":"AES-256-GCM-HMAC-SHA-256","iv":"' + b"A" * 250 + b'"}',
    )
    add("the longest sealed key", 10, sealed_key=b"k" * 4096)
    return cases


def bad() -> dict[str, Any]:
    """Every way of damage, as pieces of a whole file and bytes (in hex) between them."""
    header = header_of()
    sealed = seal(header, KIB, plaintext(3 * KIB + 5))
    key, tag = keys_of(header, DATA_KEY)
    end, start, size = len(sealed), len(header) + len(tag), KIB + 16
    first, second, third, fourth = start, start + size, start + 2 * size, start + 3 * size
    other = header_of(salt=hashlib.sha256(b"other salt").digest())
    other_file = seal(other, KIB, plaintext(3 * KIB + 5))
    cases = []

    def add(name: str, error: str, *parts: tuple[int, int] | bytes, data_key: bytes = DATA_KEY) -> None:
        spelled = [part.hex() if isinstance(part, bytes) else list(part) for part in parts]
        cases.append({"name": name, "error": error, "data_key": data_key.hex(), "parts": spelled})

    def flip(name: str, error: str, at: int, bit: int = 1) -> None:
        add(name, error, (0, at), bytes([sealed[at] ^ bit]), (at + 1, end))

    def other_header(case: str, error: str, /, **fields: Any) -> None:
        """A header of other fields before the same tag and chunks."""
        add(case, error, header_of(**fields), (len(header), end))

    add("nothing", "NotSealed")
    add("a text", "NotSealed", b"KEY=value\n" * 100)
    add("moved as text: CR LF made LF", "NotSealed", MAGIC.replace(b"\r\n", b"\n"), (8, end))
    add("moved as text: LF made CR LF", "NotSealed", MAGIC.replace(b"\n", b"\r\n"), (8, end))
    add("moved with seven bits", "NotSealed", bytes([MAGIC[0] & 127]), (1, end))
    for length in (1, 7, 8, 9, 10, 13, 16, 17, 18, len(header) - 1, len(header), start - 1):
        add(f"{length} bytes of the header", "Truncated", (0, length))
    other_header("version 0", "UnsupportedVersion", version=0)
    other_header("version 2", "UnsupportedVersion", version=2)
    other_header("cipher 0", "UnsupportedVersion", aead=0)
    other_header("cipher 2", "UnsupportedVersion", aead=2)
    other_header("a chunk size of 0", "HeaderChanged", chunk_size=0)
    other_header("a chunk size that is too small", "HeaderChanged", chunk_size=KIB - 1)
    other_header("a chunk size that is too large", "HeaderChanged", chunk_size=16 * KIB * KIB + 1)
    other_header("another chunk size", "HeaderChanged", chunk_size=KIB + 1)
    other_header("no name", "HeaderChanged", name=b"")
    other_header("another name", "HeaderChanged", name=b"my-kez")
    other_header("a name that is not UTF-8", "HeaderChanged", name=b"my-ke\xff")
    other_header("a name that is a path", "HeaderChanged", name=b"../key")
    other_header("no sealed key", "HeaderChanged", sealed_key=b"")
    other_header("a sealed key that is too long", "HeaderChanged", sealed_key=b"k" * 4097)
    other_header("another sealed key", "HeaderChanged", sealed_key=SEALED_KEY[:-1] + b"\x01")
    other_header("another salt", "HeaderChanged", salt=hashlib.sha256(b"other salt").digest())
    add("a byte moved from the name to the sealed key", "HeaderChanged", (0, 14), b"\x05\x00\x4d", (17, end))
    flip("the first bit of the tag", "HeaderChanged", len(header), 128)
    flip("the last bit of the tag", "HeaderChanged", start - 1)
    add("the tag of another file", "HeaderChanged", (0, len(header)), other_file[len(header) : start], (start, end))
    add("another data key", "HeaderChanged", (0, end), data_key=bytes(32))
    add("a data key that is too short", "HeaderChanged", (0, end), data_key=DATA_KEY[:31])
    add("a data key that is too long", "HeaderChanged", (0, end), data_key=DATA_KEY + b"\x00")

    flip("the first bit of the first chunk", "Tampered", first, 128)
    flip("the tag of the first chunk", "Tampered", second - 1)
    flip("a bit of the second chunk", "Tampered", second + 100)
    flip("a bit of the last chunk", "Tampered", fourth)
    flip("the tag of the last chunk", "Tampered", end - 1)
    add("no chunk", "Truncated", (0, first))
    add("cut off within the first tag", "Truncated", (0, first + 15))
    add("cut off within the first chunk", "Tampered", (0, first + 500))
    add("cut off behind the first chunk", "Truncated", (0, second))
    add("cut off before the last chunk", "Truncated", (0, fourth))
    add("cut off within the last tag", "Tampered", (0, end - 1))
    add("the first chunk left out", "Tampered", (0, first), (second, end))
    add("the second chunk left out", "Tampered", (0, second), (third, end))
    add("the chunk before the last left out", "Tampered", (0, third), (fourth, end))
    add("all but the last chunk left out", "Tampered", (0, first), (fourth, end))
    add("two chunks exchanged", "Tampered", (0, first), (second, third), (first, second), (third, end))
    add("a chunk repeated", "Tampered", (0, second), (first, end))
    add("the last chunk repeated", "Tampered", (0, end), (fourth, end))
    add("a byte appended", "Tampered", (0, end), b"\x00")
    add("the file appended to itself", "Tampered", (0, end), (0, end))
    add(
        "a chunk of another file with the same data key",
        "Tampered",
        (0, first),
        other_file[first:second],
        (second, end),
    )
    add("all chunks of another file with the same data key", "Tampered", (0, first), other_file[first:])
    add("a last chunk sealed as any other", "Truncated", (0, fourth), chunk_of(key, 3, 0, plaintext(3 * KIB + 5)[-5:]))
    add("a first chunk sealed as the last", "Tampered", (0, first), chunk_of(key, 0, 1, plaintext(KIB)), (second, end))
    add("an empty chunk at the end", "Tampered", (0, fourth), chunk_of(key, 3, 1, b""))
    add(
        "a chunk that is not full, with another behind",
        "Tampered",
        (0, first),
        chunk_of(key, 0, 0, b"ab"),
        chunk_of(key, 1, 1, b""),
    )
    return {"sealed": sealed.hex(), "cases": cases}


def write(name: str, content: object) -> None:
    (FOLDER / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write("sealed.json", {"cases": good()})
    write("damaged.json", bad())
