"""Where a server is."""

import pytest

from keswick.client import Endpoint
from keswick.client.endpoint import parse_all


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://127.0.0.1:7373", "https://127.0.0.1:7373"),
        (" kes.example.com:7373 ", "https://kes.example.com:7373"),
        ("http://kes:1", "https://kes:1"),
        ("https://kes.example.com/", "https://kes.example.com:443"),
        ("HTTPS://kes.example.com:443", "https://kes.example.com:443"),
        ("localhost", "https://localhost:443"),
        ("[::1]", "https://[::1]:443"),
        ("[0:0::1]:1", "https://[::1]:1"),
        ("bücher.example", "https://xn--bcher-kva.example:443"),
        ("Kes.Example.COM.", "https://kes.example.com.:443"),
        ("[::1]:7373", "https://[::1]:7373"),
    ],
)
def test_an_endpoint(text: str, url: str) -> None:
    assert str(Endpoint.parse(text)) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://",
        "ftp://a",
        "a:b",
        "a:70000",
        "a/b",
        "[::1",
        "user@host:1",
        "a..b",
        "a b",
        "[::z]",
        "x" * 64,
        "\udcff",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="is not an endpoint"):
        Endpoint.parse(text)


def test_several_are_a_list_or_a_text_with_commas() -> None:
    both = (Endpoint("a", 1), Endpoint("b", 2))
    assert parse_all("a:1, b:2,") == parse_all(["a:1", "https://b:2"]) == parse_all("a:1,b:2,A:1") == both
