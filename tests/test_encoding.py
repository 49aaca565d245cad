import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.encoding import b64decode_go, json_object, parse_rfc3339, rfc3339


@pytest.mark.parametrize(
    ("text", "decoded"),
    [
        ("", b""),
        ("QUJD", b"ABC"),
        ("QUI=", b"AB"),
        ("QQ==", b"A"),
        ("QR==", b"A"),  # spare bits are set
        ("+/==", b"\xfb"),
        ("QU\r\nJD\n", b"ABC"),
        ("QQ=\r\n=", b"A"),
        (b"QUJD", b"ABC"),
    ],
)
def test_base64_is_read(text: str | bytes, decoded: bytes) -> None:
    assert b64decode_go(text) == decoded


@pytest.mark.parametrize(
    "text",
    [
        "Q",
        "QQ",
        "QUI",
        "QQ=",
        "QUJD=",
        "QUJD==",
        "QUJD====",
        "====",
        "Q===",
        "=QQQ",
        "QQ==QUJD",
        "QQ=Q",
        "QQ== ",
        "Q\tQ==",
        " QQ==",
        "-_==",
        "QQ==\0",
        "é===",
    ],
)
def test_what_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not standard base64 with padding$"):
        b64decode_go(text)


def test_base64_rule_is_the_one_of_msgspec_but_for_line_ends() -> None:
    """Request bodies are decoded by msgspec, so both have to take the same texts."""
    decoder = msgspec.json.Decoder(bytes)
    for size in range(7):
        for letters in itertools.product("QR=-", repeat=size):
            text = "".join(letters)
            try:
                expected = decoder.decode(f'"{text}"')
            except msgspec.ValidationError:
                with pytest.raises(ValueError, match="base64"):
                    b64decode_go(text)
            else:
                assert b64decode_go(text) == expected
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(rb'"QQ==\n"')


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
        (1_700_000_000_500_000_000, "2023-11-14T22:13:20.5Z"),
        (1, "1970-01-01T00:00:00.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (-62_135_596_800 * 10**9, "0001-01-01T00:00:00Z"),
        (253_402_300_799 * 10**9, "9999-12-31T23:59:59Z"),
    ],
)
def test_times_are_written_and_read(ns: int, text: str) -> None:
    assert rfc3339(ns) == text
    assert parse_rfc3339(text) == ns


@pytest.mark.parametrize("seconds", [-62_135_596_801, 253_402_300_800, 10**18, -(10**18)])
def test_times_beyond_the_calendar_are_refused(seconds: int) -> None:
    with pytest.raises(ValueError, match="years 1 to 9999"):
        rfc3339(seconds * 10**9)


@given(st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9))
def test_every_time_survives(ns: int) -> None:
    assert parse_rfc3339(rfc3339(ns)) == ns


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2023-01-24T17:03:04.5+01:00", "2023-01-24T16:03:04.5Z"),
        ("2023-01-24T17:03:04-23:59", "2023-01-25T17:02:04Z"),
        ("2023-01-24T17:03:04+00:00", "2023-01-24T17:03:04Z"),
        ("2023-01-24T17:03:04.1234567899Z", "2023-01-24T17:03:04.123456789Z"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
    ],
)
def test_offsets_and_fractions_are_read(text: str, same: str) -> None:
    assert rfc3339(parse_rfc3339(text)) == same


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "2023-01-24",
        "2023-01-24T17:03:04",
        "2023-01-24t17:03:04Z",
        "2023-01-24T17:03:04z",
        "2023-01-24 17:03:04Z",
        "2023-01-24T17:03:04,5Z",
        "2023-01-24T17:03:04.Z",
        "2023-01-24T17:03:60Z",
        "2023-02-29T17:03:04Z",
        "2023-13-01T17:03:04Z",
        "2023-01-24T24:03:04Z",
        "2023-01-24T7:03:04Z",
        "2023-01-24T17:03:04+24:00",
        "2023-01-24T17:03:04+01:60",
        "2023-01-24T17:03:04+0100",
        "2023-01-24T17:03:04Z\n",
        "\u0662023-01-24T17:03:04Z",
    ],
)
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not an RFC 3339 time"):
        parse_rfc3339(text)


def test_json_names_are_matched_in_any_case() -> None:
    assert json_object(b'{"Bytes":"a","CREATED_AT":"b","other":1}') == {"bytes": "a", "created_at": "b", "other": 1}


def test_json_null_is_absent_and_the_last_of_a_name_counts() -> None:
    assert json_object(b' {"a":null,"b":1,"B":2}\r\n') == {"b": 2}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[1]",
        b'"a"',
        b"{} x",
        b"{}{}",
        b'{"a":}',
        b'{"a":NaN}',
        b'{"a":"\xff"}',
        b"\xef\xbb\xbf{}",
        b'{"a":' * 100_000,
        b'{"a":[' + b"[" * 100_000,
    ],
    ids=lambda data: data[:12],
)
def test_what_is_not_a_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="JSON"):
        json_object(data)
