import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.crypto import protobuf
from keswick.crypto.protobuf import Message

UNKNOWN_FIELDS = {
    "varint": "2805",
    "varint of ten bytes": "28" + "ff" * 9 + "01",
    "fixed64": "29" + "11" * 8,
    "string": "2a0178",
    "fixed32": "2d" + "11" * 4,
    "group": "2b" + "0805" + "1a0178" + "19" + "11" * 8 + "2c",
    "groups in a group": "2b" + "330805343334" + "2c",
    "largest number": "f8ffffff0f" + "05",
    "expected number as another wire type": "0a00" + "0d" + "11" * 4 + "10" + "05",
}


@pytest.mark.parametrize("unknown", UNKNOWN_FIELDS.values(), ids=UNKNOWN_FIELDS)
def test_unknown_fields_are_skipped(unknown: str) -> None:
    message = Message(bytes.fromhex(unknown + "0807" + unknown + "120161" + unknown))
    assert (message.integer(1), message.binary(2)) == (7, b"a")


BROKEN = {
    "field number 0": "0005",
    "field number above 29 bits": "808080801005",
    "wire type 6": "0e",
    "wire type 7": "0f",
    "tag cut short": "80",
    "varint cut short": "08ff",
    "varint of eleven bytes": "08" + "ff" * 10 + "01",
    "varint above 64 bits": "08" + "ff" * 9 + "02",
    "string cut short": "0a0261",
    "string longer than memory": "0a" + "ff" * 9 + "01",
    "fixed64 cut short": "09" + "11" * 7,
    "fixed32 cut short": "0d" + "11" * 3,
    "group without an end": "0b",
    "end without a group": "0c",
    "group with another end": "0b14",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_messages_are_refused(data: str) -> None:
    with pytest.raises(ValueError, match="Protocol Buffers"):
        Message(bytes.fromhex(data))


def test_absent_fields_have_their_zero_values() -> None:
    message = Message(b"")
    assert (message.integer(1), message.binary(2), message.message(3)) == (0, b"", None)


def test_the_last_of_a_repeated_field_counts_and_messages_are_merged() -> None:
    message = Message(bytes.fromhex("0801" + "0802" + "120161" + "120162" + "1a020801" + "1a03120163"))
    assert (message.integer(1), message.binary(2)) == (2, b"b")
    merged = message.message(3)
    assert merged
    assert (merged.integer(1), merged.binary(2)) == (1, b"c")


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.binary(), st.integers(1, (1 << 29) - 2))
def test_what_is_written_is_read(integer: int, binary: bytes, number: int) -> None:
    inner = protobuf.integer(number, integer) + protobuf.binary(number + 1, binary)
    message = Message(protobuf.message(number, inner)).message(number)
    assert message
    assert (message.integer(number), message.binary(number + 1)) == (integer, binary)


def test_zero_values_are_left_out_but_an_empty_message_is_written() -> None:
    assert protobuf.integer(1, 0) + protobuf.binary(2, b"") + protobuf.message(3, b"") == b"\x1a\x00"


@given(st.binary())
def test_arbitrary_bytes_raise_nothing_but_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        Message(data)
