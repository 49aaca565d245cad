import base64
import json
import traceback
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.crypto import AES256, CHACHA20, KeyFormatError, NoHMACKeyError
from keswick.crypto.stored import StoredKey, decode, encode
from keswick.encoding import rfc3339

KEY = bytes(range(32))
HMAC_KEY = bytes(range(100, 132))
CREATOR = "5858da875971862c6d54c3d135ed7407ba658e8b6ccbb038026faaa98e50fbd7"

# Form E as the newest original writes it, field by field.
SECRET = "0a24" + "0a20" + KEY.hex() + "1001"
HMAC = "1224" + "0a20" + HMAC_KEY.hex() + "1001"
CREATED_AT = "1a0c" + "0880e2cfaa06" + "10b1d1f9d603"
CREATED_BY = "2240" + CREATOR.encode().hex()

NEWEST = StoredKey(KEY, AES256, HMAC_KEY, "2023-11-14T22:13:20.987654321Z", CREATOR)


def protobuf_key(*fields: str) -> bytes:
    return base64.b64encode(bytes.fromhex("".join(fields)))


def json_key(**fields: Any) -> bytes:
    return json.dumps({"bytes": base64.b64encode(KEY).decode()} | fields).encode()


def parts(key: StoredKey) -> tuple[object, ...]:
    return key.key, key.algorithm, key.hmac_key, key.created_at, key.created_by


def test_the_newest_form_is_written_to_the_byte() -> None:
    value = encode(NEWEST)
    assert base64.b64decode(value).hex() == SECRET + HMAC + CREATED_AT + CREATED_BY
    assert len(base64.b64decode(value)) == 156
    assert len(value) == 208


def test_fields_with_zero_values_are_not_written() -> None:
    value = encode(StoredKey(KEY, CHACHA20, HMAC_KEY, "1970-01-01T00:00:00Z", ""))
    assert base64.b64decode(value).hex() == SECRET[:-2] + "02" + HMAC + "1a00"


keys = st.builds(
    StoredKey,
    key=st.binary(min_size=32, max_size=32),
    algorithm=st.sampled_from([AES256, CHACHA20]),
    hmac_key=st.binary(min_size=32, max_size=32),
    created_at=st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9).map(rfc3339),
    created_by=st.text(),
)


@given(keys)
def test_the_newest_form_survives(key: StoredKey) -> None:
    assert parts(decode(encode(key))) == parts(key)


@pytest.mark.parametrize(
    ("value", "algorithm", "created_at", "created_by"),
    [
        (json_key(), None, "0001-01-01T00:00:00Z", ""),
        (json_key(algorithm=""), None, "0001-01-01T00:00:00Z", ""),
        (json_key(algorithm="AES256"), AES256, "0001-01-01T00:00:00Z", ""),
        (json_key(algorithm="AES256-GCM_SHA256"), AES256, "0001-01-01T00:00:00Z", ""),
        (json_key(algorithm="ChaCha20"), CHACHA20, "0001-01-01T00:00:00Z", ""),
        (json_key(algorithm="XCHACHA20-POLY1305"), CHACHA20, "0001-01-01T00:00:00Z", ""),
        (json_key(created_at="2023-01-24T17:03:04.5+01:00"), None, "2023-01-24T17:03:04.5+01:00", ""),
        (json_key(created_at=None, created_by=None, algorithm=None), None, "0001-01-01T00:00:00Z", ""),
        (json_key(version="v1", created_by=CREATOR), None, "0001-01-01T00:00:00Z", CREATOR),
        (json_key(version=2, other=[{}]), None, "0001-01-01T00:00:00Z", ""),
        (b"\r\n\t " + json_key() + b" \n", None, "0001-01-01T00:00:00Z", ""),
        (json_key().replace(b"bytes", b"BYTES"), None, "0001-01-01T00:00:00Z", ""),
        (json_key().replace(b"AAEC", b"AA\\r\\nEC"), None, "0001-01-01T00:00:00Z", ""),
    ],
)
def test_json_forms_are_read(value: bytes, algorithm: str | None, created_at: str, created_by: str) -> None:
    assert parts(decode(value)) == (KEY, algorithm, None, created_at, created_by)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (protobuf_key(SECRET, HMAC, CREATED_AT, CREATED_BY), NEWEST),
        (protobuf_key(CREATED_BY, CREATED_AT, HMAC, SECRET), NEWEST),
        (protobuf_key(SECRET, HMAC, CREATED_AT, CREATED_BY, "2a0178"), NEWEST),
        (protobuf_key(SECRET, HMAC, CREATED_AT, "220178", CREATED_BY), NEWEST),
        (protobuf_key("0a021002", SECRET, HMAC, CREATED_AT, CREATED_BY), NEWEST),
        (protobuf_key(SECRET, HMAC, CREATED_AT, CREATED_BY) + b"\n", NEWEST),
        (
            b"\r\n".join(protobuf_key(SECRET, HMAC, CREATED_AT, CREATED_BY)[i : i + 64] for i in (0, 64, 128, 192)),
            NEWEST,
        ),
        (protobuf_key(SECRET, HMAC), StoredKey(KEY, AES256, HMAC_KEY, "1970-01-01T00:00:00Z", "")),
        (
            protobuf_key(SECRET, HMAC, "1a0b08ffffffffffffffffff01"),
            StoredKey(KEY, AES256, HMAC_KEY, "1969-12-31T23:59:59Z", ""),
        ),
    ],
)
def test_the_newest_form_is_read(value: bytes, expected: StoredKey) -> None:
    assert parts(decode(value)) == parts(expected)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "incomplete"),
        (b"hello world", "not standard base64"),
        (b"[1]", "not standard base64"),
        (b"null", "Protocol Buffers"),
        (json_key() + b" x", "not a JSON object"),
        (json_key()[:-1], "not a JSON object"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"{}", "has 0 bytes, not 32"),
        (json_key(bytes="AAAA"), "has 3 bytes, not 32"),
        (json_key(bytes="@@@"), "not standard base64"),
        (json_key(bytes=5), "bytes is not a string"),
        (json_key(algorithm="AES-256-GCM-HMAC-SHA-256"), "algorithm is none of AES256, AES256-GCM_SHA256, ChaCha20"),
        (json_key(algorithm=1), "algorithm is not a string"),
        (json_key(created_at="yesterday"), "not an RFC 3339 time"),
        (json_key(created_at=""), "not an RFC 3339 time"),
        (json_key(created_at="2023-02-30T00:00:00Z"), "not an RFC 3339 time"),
        (json_key(created_by=[]), "created_by is not a string"),
        (protobuf_key(SECRET), "incomplete"),
        (protobuf_key(HMAC, CREATED_AT), "incomplete"),
        (protobuf_key(SECRET[:-2] + "03", HMAC), "type is neither"),
        (protobuf_key(SECRET, HMAC[:-2] + "02"), "hash is not 1"),
        (protobuf_key("0a020801", HMAC), "type is neither"),
        (protobuf_key("0a021001", HMAC), "secret key has 0 bytes"),
        (protobuf_key(SECRET, "12021001"), "HMAC key has 0 bytes"),
        (protobuf_key(SECRET, HMAC, "2201ff"), "creator is not UTF-8"),
        (protobuf_key(SECRET, HMAC, "1a0a08ffffffffffffffff7f"), "outside the years"),
        (protobuf_key(SECRET, HMAC)[:-4], "cut short"),
        (protobuf_key(SECRET, HMAC).replace(b"C", b" C"), "not standard base64"),
    ],
)
def test_what_cannot_be_read_says_why(value: bytes, reason: str) -> None:
    with pytest.raises(KeyFormatError, match=reason):
        decode(value)


def test_a_key_without_hmac_key_has_no_newest_form() -> None:
    with pytest.raises(NoHMACKeyError):
        encode(decode(json_key()))


VALUES = [
    json_key(),
    json_key(version="v1", algorithm="ChaCha20", created_at="2023-01-24T17:03:04.5+01:00", created_by=CREATOR),
    encode(NEWEST),
]


def decode_or_refuse(value: bytes) -> None:
    """Any error but KeyFormatError fails the test, and so does one that shows the key."""
    refusal = None
    try:
        decode(value)
    except KeyFormatError as error:
        refusal = error
    if refusal is not None:
        shown = "".join(traceback.format_exception(refusal)).split("KeyFormatError", 1)[1]
        assert not any(form in shown for form in (KEY.hex(), base64.b64encode(KEY).decode()[:40], repr(KEY)[2:-1]))


@given(st.binary())
def test_arbitrary_bytes_are_refused_in_one_way(value: bytes) -> None:
    decode_or_refuse(value)
    decode_or_refuse(b"{" + value)
    decode_or_refuse(base64.b64encode(value))


@given(st.sampled_from(VALUES), st.data())
def test_damaged_values_are_refused_in_one_way(value: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(value)))
    cut = data.draw(st.integers(0, 4))
    decode_or_refuse(value[:at] + data.draw(st.binary(max_size=4)) + value[at + cut :])
    if not value.startswith(b"{"):
        message = base64.b64decode(value)
        damaged = message[:at] + data.draw(st.binary(max_size=4)) + message[at + cut :]
        decode_or_refuse(base64.b64encode(damaged))


@given(
    st.dictionaries(
        st.sampled_from(["bytes", "algorithm", "created_at", "created_by", "version", "Bytes"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda values: st.lists(values) | st.dictionaries(st.text(), values),
        ),
    )
)
def test_any_json_object_is_refused_in_one_way(fields: dict[str, object]) -> None:
    decode_or_refuse(json.dumps(fields).encode())
    decode_or_refuse(json_key(**{name: value for name, value in fields.items() if name != "bytes"}))


def test_a_stored_key_shows_no_secret() -> None:
    assert (
        repr(NEWEST)
        == f"StoredKey(algorithm='AES256', created_at='2023-11-14T22:13:20.987654321Z', created_by='{CREATOR}')"
    )
