"""The format of sealed files: vectors, round trips, and damage of every kind."""

import hashlib
import io
import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.client import envelope
from keswick.client.envelope import Header, PayloadKey, SealError

VECTORS = Path(__file__).parents[1] / "vectors" / "envelope"
SEALED: dict[str, Any] = json.loads((VECTORS / "sealed.json").read_text())
DAMAGED: dict[str, Any] = json.loads((VECTORS / "damaged.json").read_text())

DATA_KEY = bytes(range(32))
HEADER = Header("my-key", b"sealed", envelope.MIN_CHUNK_SIZE, bytes(32))
KEY = PayloadKey(HEADER, DATA_KEY)
TEXT = bytes(range(251)) * 13  # three chunks and some bytes


def seal(plaintext: bytes, header: Header, key: PayloadKey) -> bytes:
    return b"".join(envelope.seal(io.BytesIO(plaintext).read, header, key))


def pieces_of(sealed: bytes, data_key: bytes) -> Iterator[bytes]:
    """What comes out of a sealed file, piece by piece."""
    reader = io.BytesIO(sealed)
    header, tag = Header.read(reader.read)
    key = PayloadKey(header, data_key)
    key.check(tag)
    yield from envelope.unseal(reader.read, header, key)


WHOLE = seal(TEXT, HEADER, KEY)


@pytest.mark.parametrize("case", SEALED["cases"], ids=lambda case: str(case["name"]))
def test_vector(case: dict[str, Any]) -> None:
    header = Header(
        case["key_name"], bytes.fromhex(case["sealed_key"]), case["chunk_size"], bytes.fromhex(case["salt"])
    )
    pattern, length = bytes.fromhex(case["plaintext"]["pattern"]), case["plaintext"]["length"]
    plaintext = (pattern * (length // len(pattern) + 1))[:length]
    data_key = bytes.fromhex(case["data_key"])
    sealed = seal(plaintext, header, PayloadKey(header, data_key))
    assert sealed.hex() == case.get("sealed", sealed.hex())
    assert (len(sealed), hashlib.sha256(sealed).hexdigest()) == (case["length"], case["sha256"])
    assert Header.read(io.BytesIO(sealed).read)[0] == header
    assert b"".join(pieces_of(sealed, data_key)) == plaintext


@pytest.mark.parametrize("case", DAMAGED["cases"], ids=lambda case: str(case["name"]))
def test_damage(case: dict[str, Any]) -> None:
    whole = bytes.fromhex(DAMAGED["sealed"])
    damaged = b"".join(bytes.fromhex(part) if isinstance(part, str) else whole[slice(*part)] for part in case["parts"])
    with pytest.raises(SealError) as refused:
        list(pieces_of(damaged, bytes.fromhex(case["data_key"])))
    assert type(refused.value).__name__ == case["error"]


def test_the_vectors_are_those_of_their_script() -> None:
    script = runpy.run_path(str(VECTORS / "make.py"))
    assert {"cases": script["good"]()} == SEALED
    assert script["bad"]() == DAMAGED


@given(
    st.integers(0, 5 * envelope.MIN_CHUNK_SIZE),
    st.sampled_from([envelope.MIN_CHUNK_SIZE, envelope.MIN_CHUNK_SIZE + 1, envelope.DEFAULT_CHUNK_SIZE]),
    st.integers(1, 3000),
)
def test_round_trip_of_what_comes_in_portions(length: int, chunk_size: int, portion: int) -> None:
    plaintext = (TEXT * 2)[:length]
    header = Header.new("my-key", b"sealed", chunk_size)
    key = PayloadKey(header, DATA_KEY)
    reader = io.BytesIO(plaintext)
    sealed = b"".join(envelope.seal(lambda size: reader.read(min(size, portion)), header, key))
    chunks = max(1, -(-length // chunk_size))
    assert len(sealed) == len(header.encode()) + 32 + length + 16 * chunks
    assert b"".join(pieces_of(sealed, DATA_KEY)) == plaintext


def damaged() -> st.SearchStrategy[bytes]:
    """The whole file with a stretch of it replaced by other bytes, by another stretch, or by nothing."""
    places = st.integers(0, len(WHOLE))
    stretches = st.tuples(places, places).map(lambda pair: WHOLE[min(pair) : max(pair)])
    return st.builds(
        lambda one, other, filling: WHOLE[: min(one, other)] + filling + WHOLE[max(one, other) :],
        places,
        places,
        st.one_of(st.binary(max_size=40), stretches),
    )


@given(damaged())
def test_any_damage_is_found_and_nothing_wrong_is_let_out(sealed: bytes) -> None:
    let_out = b""
    try:
        for piece in pieces_of(sealed, DATA_KEY):
            let_out += piece
    except SealError:
        assert sealed != WHOLE
        assert TEXT.startswith(let_out)
    else:
        assert sealed == WHOLE
        assert let_out == TEXT


@given(st.binary(max_size=200), st.integers(0, 17))
def test_any_bytes_are_read_or_refused(rest: bytes, kept: int) -> None:
    reader = io.BytesIO(WHOLE[:kept] + rest)
    try:
        header, tag = Header.read(reader.read)
    except SealError:
        return
    assert reader.getvalue().startswith(header.encode() + tag)


def test_each_file_has_keys_of_its_own() -> None:
    one, other = (Header.new("my-key", b"sealed") for _ in range(2))
    assert one.salt != other.salt
    assert PayloadKey(one, DATA_KEY).tag != PayloadKey(other, DATA_KEY).tag


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("my-key", b"s", 1023), "a chunk size of 1023 is not between 1024 (1 KiB) and 16777216 (16 MiB)"),
        (("my-key", b"s", (16 << 20) + 1), "a chunk size of 16777217 is not between"),
        (("k" * 256, b"s", 1024), "a sealed file cannot hold the key name"),
        (("", b"s", 1024), "a sealed file cannot hold the key name"),
        (("my-key", b"", 1024), "a sealed file cannot hold a sealed data key of 0 bytes, only 1 to 4096"),
        (("my-key", bytes(4097), 1024), "a sealed file cannot hold a sealed data key of 4097 bytes, only 1 to 4096"),
    ],
)
def test_a_header_that_cannot_be(arguments: tuple[str, bytes, int], error: str) -> None:
    with pytest.raises(ValueError, match=error.replace("(", r"\(").replace(")", r"\)")):
        Header.new(*arguments)


def test_what_is_not_open_for_bytes_is_refused() -> None:
    text: Any = io.StringIO("text")
    with pytest.raises(TypeError, match="must be open for reading bytes"):
        list(envelope.seal(text.read, HEADER, KEY))
    with pytest.raises(TypeError, match="must be open for reading bytes"):
        Header.read(text.read)


def test_the_keys_of_a_file_are_not_shown() -> None:
    assert repr(KEY) == "PayloadKey(<redacted>)"
