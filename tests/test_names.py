import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.names import is_name, is_pattern, is_stored_name

ALPHABET = set(string.ascii_letters + string.digits + "-_")


@pytest.mark.parametrize("text", ["a", "0", "my-key", "my_key", "_a", "a_", "__", "a-b-c", "A" * 80])
def test_names(text: str) -> None:
    assert is_name(text)
    assert is_pattern(text)
    assert is_stored_name(text)


@pytest.mark.parametrize(
    "text", ["_", "-", "-a", "a-", "a b", "a.b", "a/b", "A" * 81, "a\n", "ä", "a\x00", "\u0661", "**"]
)
def test_neither_names_nor_patterns(text: str) -> None:
    assert not is_name(text)
    assert not is_pattern(text)


@pytest.mark.parametrize("text", ["", "*", "a*", "my-*", "_*", "A" * 79 + "*"])
def test_patterns_that_are_no_names(text: str) -> None:
    assert is_pattern(text)
    assert not is_name(text)


@pytest.mark.parametrize("text", ["*a", "a*b", "a**", "-*", "A" * 80 + "*", "*\n", "a?"])
def test_no_patterns(text: str) -> None:
    assert not is_pattern(text)


@pytest.mark.parametrize("text", ["_", "-a", "a-", "a b", ".a", "...", "a.b", "a*", "ä" * 127, "x" * 255, "a\n", " "])
def test_names_of_older_keys(text: str) -> None:
    assert is_stored_name(text)


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a\\b", "a\x00b", "ä" * 128, "x" * 256, "\udcff"])
def test_what_no_store_can_hold(text: str) -> None:
    assert not is_stored_name(text)


@given(st.text(st.one_of(st.sampled_from("-_*aZ9"), st.characters()), max_size=84))
def test_the_rules_in_other_words(text: str) -> None:
    name = set(text) <= ALPHABET and 1 <= len(text) <= 80 and text != "_" and text[0] != "-" and text[-1] != "-"
    assert is_name(text) == name

    stem = text.removesuffix("*")
    pattern = set(stem) <= ALPHABET and len(text) <= 80 and text != "_" and text[:1] != "-" and text[-1:] != "-"
    assert is_pattern(text) == pattern
