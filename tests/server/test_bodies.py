"""Request bodies: what is read, how leniently, and that foreign bytes give a value or BadBody and nothing else."""

import base64
import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.server import bodies
from keswick.server.bodies import HMAC, BadBody, Decrypt, Encrypt, Generate, Import, decode, decode_bulk

B64 = "aGk="


@pytest.mark.parametrize(
    ("body", "plaintext", "context"),
    [
        (b'{"plaintext":"aGk=","context":"aGk="}', b"hi", b"hi"),
        (b'{"plaintext":"aGk="}', b"hi", b""),
        (b"{}", b"", b""),
        (b"null", b"", b""),
        (b'{"PLAINTEXT":"aGk=","Context":null}', b"hi", b""),
        (b'{"plaintext":"aGk=","plaintext":"QQ=="}', b"A", b""),
        (b'{"plaintext":"aGk=","unknown":{"deep":[1,2,{}]}}', b"hi", b""),
        (b'\n\t {"plaintext":"aGk="} and more', b"hi", b""),
        (b'{"plaintext":"a\\nGk\\r\\n="}', b"hi", b""),
        (b'{"plaintext":"aGk=","version":"v1"}', b"hi", b""),
        (b'{"plaintext":"aGk=","x":' + b"7" * 5000 + b"}", b"hi", b""),
    ],
)
def test_what_is_read(body: bytes, plaintext: bytes, context: bytes) -> None:
    assert decode(Encrypt, body) == Encrypt(plaintext, context)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b'"text"',
        b"7",
        b'{"plaintext":7}',
        b'{"plaintext":1234}',
        b'{"Plaintext":1234.5e67}',
        b'{"plaintext":["aGk="]}',
        b'{"plaintext":"aGk"}',
        b'{"plaintext":"aG k="}',
        b'{"plaintext":"-_-_"}',
        b'{"plaintext":"aGk=\xff"}',
        b'{"plaintext":"aGk="',
        b"{'plaintext':'aGk='}",
        b'{"x":NaN}',
        b'{"x":-Infinity}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_refused(body: bytes) -> None:
    with pytest.raises(BadBody):
        decode(Encrypt, body)


def test_a_field_in_another_case_is_never_read_as_absent() -> None:
    for name in ("plaintext", "Plaintext", "PLAINTEXT", "plainText"):
        assert decode(Encrypt, json.dumps({name: B64}).encode()).plaintext == b"hi"


def test_a_body_shows_no_secret() -> None:
    assert "hi" not in repr(decode(Encrypt, b'{"plaintext":"aGk="}'))


def test_import_takes_the_names_of_all_times() -> None:
    assert decode(Import, b'{"key":"aGk=","cipher":"AES256"}') == Import(key=b"hi", cipher="AES256")
    assert decode(Import, b'{"bytes":"aGk=","algorithm":"x"}') == Import(material=b"hi", algorithm="x")
    assert decode(Import, b'{"Bytes":"aGk=","ALGORITHM":"x"}') == Import(material=b"hi", algorithm="x")


def test_bulk() -> None:
    assert decode_bulk(b'[{"ciphertext":"aGk="},{"Ciphertext":"aGk=","x":1}]') == [Decrypt(b"hi"), Decrypt(b"hi")]
    assert decode_bulk(b"[]") == []
    for body in (b"{}", b"", b"[7]", b'[{"ciphertext":7}]'):
        with pytest.raises(BadBody):
            decode_bulk(body)


@given(st.binary(max_size=300))
def test_any_bytes_give_a_value_or_bad_body(body: bytes) -> None:
    for model in (Generate, Encrypt, Decrypt, HMAC, Import):
        with suppress(BadBody):
            assert isinstance(decode(model, body), model)
    with suppress(BadBody):
        assert isinstance(decode_bulk(body), list)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.binary().map(lambda b: base64.b64encode(b).decode()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["plaintext", "Context"]), inner),
    max_leaves=10,
)


@given(json_values)
def test_any_json_gives_a_value_or_bad_body(value: object) -> None:
    with suppress(BadBody):
        decode(Encrypt, json.dumps(value).encode())


@given(st.binary(), st.binary(), st.text())
def test_both_decoders_agree(plaintext: bytes, context: bytes, behind: str) -> None:
    fields = {"plaintext": base64.b64encode(plaintext).decode(), "context": base64.b64encode(context).decode()}
    strict = json.dumps(fields).encode()
    lenient = json.dumps({**fields, "more": 1}).encode() + b" " + behind.encode("utf-8", "replace")
    assert decode(Encrypt, strict) == decode(Encrypt, lenient) == bodies.Encrypt(plaintext, context)
