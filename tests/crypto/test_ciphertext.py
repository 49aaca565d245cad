import base64
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.crypto import AES256, CHACHA20
from keswick.crypto.ciphertext import AES256_2019, Envelope, parse_envelope

TEXT, IV, NONCE = b"ciphertext and its tag", bytes(range(16)), bytes(range(12))
ID = "32b2387b0a7e411fa8a332b2387b0a7e"


def json_ciphertext(**fields: Any) -> bytes:
    encoded = {"iv": IV, "nonce": NONCE, "bytes": TEXT}
    defaults = {name: base64.b64encode(value).decode() for name, value in encoded.items()}
    return json.dumps({"aead": "AES-256-GCM-HMAC-SHA-256", **defaults} | fields).encode()


def msgpack_ciphertext(*items: Any) -> bytes:
    return msgspec.msgpack.encode(items or ("AES256", ID, IV, NONCE, TEXT))


@pytest.mark.parametrize(
    ("ciphertext", "algorithm"),
    [
        (json_ciphertext(), AES256),
        (json_ciphertext(id=ID), AES256),
        (json_ciphertext(id=5, more=[]), AES256),
        (json_ciphertext(aead="ChaCha20Poly1305"), CHACHA20),
        (json_ciphertext(aead="AES-256-GCM"), AES256_2019),
        (json_ciphertext() + b" \n", AES256),
        (json_ciphertext().replace(b'"iv"', b'"IV"'), AES256),
        (json_ciphertext().replace(b"AAEC", b"AA\\nEC"), AES256),
        (msgpack_ciphertext(), AES256),
        (msgpack_ciphertext("AES256-GCM_SHA256", ID, IV, NONCE, TEXT), AES256),
        (msgpack_ciphertext("ChaCha20", ID, IV, NONCE, TEXT), CHACHA20),
        (msgpack_ciphertext("XCHACHA20-POLY1305", "", IV, NONCE, TEXT), CHACHA20),
    ],
)
def test_envelopes_are_read(ciphertext: bytes, algorithm: str) -> None:
    assert parse_envelope(ciphertext) == Envelope(algorithm, TEXT + IV + NONCE)


@pytest.mark.parametrize("size", [0, 255, 256, 65_535, 65_536])
def test_every_size_of_binary_is_read(size: int) -> None:
    envelope = parse_envelope(msgpack_ciphertext("AES256", ID, IV, NONCE, bytes(size)))
    assert envelope == Envelope(AES256, bytes(size) + IV + NONCE)


@pytest.mark.parametrize(
    "ciphertext",
    [
        b"",
        b"raw",
        b" " + json_ciphertext(),
        json_ciphertext() + b"x",
        json_ciphertext()[:-1],
        b"{}",
        b"{" * 100_000,
        b'{"a":' * 100_000,
        json_ciphertext(aead="AES256"),
        json_ciphertext(aead=None),
        json_ciphertext(aead=[]),
        json_ciphertext(iv=base64.b64encode(IV[1:]).decode()),
        json_ciphertext(nonce=base64.b64encode(NONCE + b"x").decode()),
        json_ciphertext(bytes="AAA"),
        json_ciphertext(bytes=5),
        msgpack_ciphertext() + b"x",
        msgpack_ciphertext()[:-1],
        msgpack_ciphertext("AES256", ID, IV, NONCE),
        msgpack_ciphertext("AES256", ID, IV, NONCE, TEXT, TEXT),
        msgpack_ciphertext("aes256", ID, IV, NONCE, TEXT),
        msgpack_ciphertext("AES-256-GCM-HMAC-SHA-256", ID, IV, NONCE, TEXT),
        msgpack_ciphertext(b"AES256", ID, IV, NONCE, TEXT),
        msgpack_ciphertext("AES256", None, IV, NONCE, TEXT),
        msgpack_ciphertext("AES256", ID, IV + b"x", NONCE, TEXT),
        msgpack_ciphertext("AES256", ID, IV, NONCE[1:], TEXT),
        msgpack_ciphertext("AES256", ID, IV, NONCE, "text"),
        b"\xdc\x00\x05" + msgpack_ciphertext()[1:],
        b"\x95\xa1\xff\xa0\xc4\x00\xc4\x00\xc4\x00",
        b"\x95\xdb\xff\xff\xff\xff",
    ],
    ids=lambda ciphertext: repr(ciphertext[:40]),
)
def test_everything_else_is_raw(ciphertext: bytes) -> None:
    assert parse_envelope(ciphertext) is None


@given(st.binary(), st.sampled_from([b"", b"{", b"\x95"]))
def test_arbitrary_bytes_are_raw(ciphertext: bytes, first: bytes) -> None:
    assert parse_envelope(first + ciphertext) is None


@given(st.sampled_from([json_ciphertext(), json_ciphertext(id=ID), msgpack_ciphertext()]), st.data())
def test_damaged_envelopes_raise_nothing(ciphertext: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(ciphertext)))
    cut = data.draw(st.integers(0, 4))
    parse_envelope(ciphertext[:at] + data.draw(st.binary(max_size=4)) + ciphertext[at + cut :])
