import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.config import duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0),
        ("300s", 300),
        ("5m", 300),
        ("1h2m3s", 3723),
        ("1.5h", 5400),
        (".5s", 0.5),
        ("1.s", 1),
        ("100ms", 0.1),
        ("7us", 0.000_007),
        ("7µs", 0.000_007),
        ("7μs", 0.000_007),
        ("1ns", 0.000_000_001),
        ("1m1ms", 60.001),
        ("+2s", 2),
        ("-1h1m", -3660),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration.parse(text) == seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'300s'"),
        ("0", "needs a unit"),
        ("300", "needs a unit"),
        ("-5", "needs a unit"),
        ("1.5", "not a duration"),
        ("1d", "not a duration"),
        ("1 s", "not a duration"),
        (" 1s", "not a duration"),
        ("1s\n", "not a duration"),
        ("s", "not a duration"),
        (".s", "not a duration"),
        ("1s2", "not a duration"),
        ("1S", "not a duration"),
        ("\u0661s", "not a duration"),
        ("1h-1m", "not a duration"),
        ("2562048h", "292 years"),
        ("9" * 5000 + "s", "292 years"),
    ],
)
def test_what_is_no_duration(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        duration.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (300, "5m0s"),
        (30, "30s"),
        (3600, "1h0m0s"),
        (3723.5, "1h2m3.5s"),
        (0.02, "20ms"),
        (0.000_191_397, "191.397µs"),
        (0.000_000_005, "5ns"),
        (-1.5, "-1.5s"),
        (-1e-12, "0s"),
    ],
)
def test_format(seconds: float, text: str) -> None:
    assert duration.format(seconds) == text


@given(st.integers(-(10**15), 10**15).map(lambda nanoseconds: nanoseconds / 1e9))
def test_a_formatted_duration_is_read_back(seconds: float) -> None:
    assert duration.parse(duration.format(seconds)) == pytest.approx(seconds, abs=1e-9)


@given(st.text(st.sampled_from("0123456789.-+nuµmsh "), max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(duration.parse(text), float)
