"""Replies as the original writes them, byte for byte."""

import json

from hypothesis import given
from hypothesis import strategies as st

from keswick.server.replies import ApiError, json_reply, redirect


def test_an_error_has_a_line_feed_before_its_brace() -> None:
    assert ApiError(400, 'a "b"').reply()[::2] == (400, b'{"message":"a \\"b\\""\n}')


def test_what_go_escapes_is_escaped() -> None:
    assert json_reply({"version": "<a&b>\u2028\u2029"})[2] == b'{"version":"\\u003ca\\u0026b\\u003e\\u2028\\u2029"}\n'


def test_a_redirect_cannot_carry_markup() -> None:
    body = redirect("/v1/<script>\"'&", 307, get=True)[2]
    assert body == b'<a href="/v1/&lt;script&gt;&#34;&#39;&amp;">Temporary Redirect</a>.\n\n'


@given(st.text())
def test_escaping_changes_no_meaning(text: str) -> None:
    assert json.loads(json_reply({"x": text})[2]) == {"x": text}
    assert json.loads(ApiError(400, text).reply()[2]) == {"message": text}
