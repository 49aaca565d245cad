"""The table of routes, and from a path as it was sent to its route and resource."""

import posixpath
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick.server.routes import ROUTES, SKIPPABLE, UncleanPath, find, lacking_slash, resolve


def test_every_route_finds_itself() -> None:
    for route in ROUTES:
        resource = "x" if route.path.endswith("/") else ""
        assert find(route.path + resource) == (route, resource)
        assert lacking_slash(route.path.rstrip("/")) == (route if route.path.endswith("/") else None)


def test_routes_that_may_be_opened_show_no_key_and_change_nothing() -> None:
    opened = [route for route in ROUTES if route.path in SKIPPABLE]
    assert len(opened) == len(SKIPPABLE)
    for route in opened:
        assert (route.method, route.max_body) == ("GET", 0)
        assert not route.path.startswith(("/v1/key", "/v1/policy", "/v1/identity", "/v1/log"))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/key",
        "/v1/key/",
        "/v1/key/bulk/",
        "/v1/status/",
        "/version/",
        "/v2/status",
        "/V1/status",
    ],
)
def test_what_is_no_route(path: str) -> None:
    assert find(path)[0] is None


@pytest.mark.parametrize(
    ("raw", "resource"),
    [
        ("/v1/key/create/a", "a"),
        ("/v1/key/create/%61", "a"),
        ("/v1/key/create/a%2Fb", "a/b"),
        ("/v1/key/create/a/b", "a/b"),
        ("/v1/key/create/%252e", "%2e"),
        ("/v1/key/create/%C3%BC", "ü"),
        ("/v1/key/create/%FF", "\ufffd"),
        ("/v1/key/create/...", "..."),
        ("/v1/key/create/a;b=c", "a;b=c"),
        ("/%76%31/key/create/a", "a"),
    ],
)
def test_the_resource_is_decoded_once(raw: str, resource: str) -> None:
    route, path, found = resolve(raw)
    assert route is not None
    assert (path, found) == (route.path + resource, resource)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("/v1/key/create/..", "/v1/key"),
        ("/v1/key/create/../", "/v1/key/"),
        ("/v1/key/create/%2e%2e/delete/x", "/v1/key/delete/x"),
        ("/v1/key/create/a%2F%2E%2E", "/v1/key/create"),
        ("//v1/status", "/v1/status"),
        ("/../../..", "/"),
        ("/.", "/"),
        ("*", None),
        ("", None),
        ("v1/status", None),
        ("/v1/key/create/a%00", None),
    ],
)
def test_unclean_paths_never_reach_a_route(raw: str, clean: str | None) -> None:
    with pytest.raises(UncleanPath) as refused:
        resolve(raw)
    assert refused.value.clean == clean


segments = st.lists(st.text(alphabet="ab.%/é\0 ", max_size=4), max_size=6)


@given(segments)
def test_what_is_resolved_is_clean_and_what_is_cleaned_is_resolved(parts: list[str]) -> None:
    path = "/" + "/".join(parts)
    clean: str | None = path
    try:
        assert resolve(quote(path, safe="/"))[1] == path
    except UncleanPath as unclean:
        clean = unclean.clean
    if clean is None:
        assert "\0" in path
    else:
        assert resolve(quote(clean, safe="/"))[1] == clean
        assert clean.rstrip("/") == posixpath.normpath("/" + path.lstrip("/")).rstrip("/")
