"""PEM blocks: read, written, and never anything but blocks or a ValueError."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick import pem
from support.certificates import make

KEY = pem.encode("PRIVATE KEY", b"not a key, but bytes " * 10)


def test_blocks_come_in_order_with_what_is_between_passed_over() -> None:
    text = "words\n" + pem.encode("CERTIFICATE", b"one") + "more words\r\n" + KEY.replace("\n", "\r\n")
    first, second = pem.blocks(text)
    assert (first.label, first.der) == ("CERTIFICATE", b"one")
    assert second.is_private_key
    assert not second.is_encrypted
    assert "not a key" not in repr(second)


@pytest.mark.parametrize(
    "text",
    [
        KEY.replace("-----END PRIVATE KEY-----", ""),
        KEY[:60],
        KEY.replace("END PRIVATE", "END PUBLIC"),
        KEY[:80] + "*" + KEY[80:],
    ],
)
def test_broken_blocks_are_told(text: str) -> None:
    with pytest.raises(ValueError, match="PEM"):
        pem.blocks(text)


def test_the_first_block_is_the_first_that_begins() -> None:
    one, two = pem.encode("CERTIFICATE", b"one"), pem.encode("CERTIFICATE", b"two")
    for text in (one, "words\n" + one + two, one + KEY, one + "-----BEGIN X", one.replace("\n", "\r\n")):
        assert pem.first(text).der == b"one"
    assert pem.first(KEY + one).is_private_key
    for text in ("", "words", one[:30] + "\n" + two, one.partition("-----END")[0] + two, one.replace("\n", " ")):
        with pytest.raises(ValueError, match="PEM"):
            pem.first(text)


def test_an_encrypted_key_opens_with_its_password_alone() -> None:
    der = make().key_der
    (block,) = pem.blocks(pem.encrypt(der, "secret"))
    assert block.is_encrypted
    assert pem.decrypt(block, "secret") == der
    with pytest.raises(ValueError, match="incorrect password"):
        pem.decrypt(block, "wrong")
    with pytest.raises(ValueError, match="empty"):
        pem.encrypt(der, "")


@given(st.binary(max_size=500))
def test_what_is_written_is_read(der: bytes) -> None:
    (block,) = pem.blocks(pem.encode("CERTIFICATE", der))
    assert block.der == der


@given(st.text(alphabet=st.sampled_from("-BEGIN PRVATKYD=+/a\r\n:"), max_size=300) | st.text(max_size=200))
def test_any_text_gives_blocks_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        pem.blocks(text)
    with suppress(ValueError):
        pem.first(text)
    with suppress(ValueError):
        pem.blocks(f"-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----")
