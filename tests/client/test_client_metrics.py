"""Scrapes, as Prometheus's text format has them."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.client import Metrics

SCRAPE = r"""# HELP kes_http_request_success Requests that succeeded.
# TYPE kes_http_request_success counter
kes_http_request_success{code="200"} 17
kes_http_request_success{code="307"} 1.5e1 1395066363000

time_bucket{api="a",le="0.1"} 1
time_bucket{api="a",le="+Inf"} 3
time_bucket{api="b",le="0.1"} 2
time_bucket{api="b",le="+Inf"} 2
plain 4
odd{text="a \"}\\\n{ b",} +Inf
"""


def test_samples_are_found_by_name_and_labels() -> None:
    metrics = Metrics(SCRAPE)
    assert metrics.text == SCRAPE
    assert metrics.samples("kes_http_request_success") == {(("code", "200"),): 17.0, (("code", "307"),): 15.0}
    assert metrics.samples("plain") == {(): 4.0}
    assert metrics.samples("odd") == {(("text", 'a "}\\\n{ b'),): inf}
    assert metrics.samples("absent") == {}


def test_totals_are_over_all_labels() -> None:
    metrics = Metrics(SCRAPE)
    assert metrics.total("kes_http_request_success") == 32.0
    assert metrics.total("absent") == 0.0


def test_buckets_are_over_all_other_labels_in_order() -> None:
    assert Metrics(SCRAPE).buckets("time") == [(0.1, 3.0), (inf, 5.0)]
    assert Metrics(SCRAPE).buckets("plain") == []


@pytest.mark.parametrize("text", ["<html>", "a", "a b", '{"message":"no"}', 'a{b="c} 1', "a{b} 1 2 3"])
def test_what_is_no_scrape(text: str) -> None:
    with pytest.raises(ValueError, match="is no line of metrics"):
        Metrics(text)


@pytest.mark.parametrize("labels", ["a" * 200_000, "a " * 100_000, 'a="' * 100_000, "a" + " " * 200_000])
def test_labels_that_are_none_take_no_time(labels: str) -> None:
    assert Metrics(f"m{{{labels}}} 1").total("m") == 1.0


def test_nothing_is_a_scrape() -> None:
    assert Metrics("").total("a") == 0.0


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        Metrics(text)
    except ValueError as error:
        assert "is no line of metrics" in str(error)  # noqa: PT017


@given(st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), st.text(), max_size=4))
def test_labels_are_read_as_servers_write_them(labels: dict[str, str]) -> None:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    text = ",".join(f'{name}="{escaped(value)}"' for name, value in labels.items())
    assert Metrics(f"a{{{text}}} 1").samples("a") == {tuple(labels.items()): 1.0}
