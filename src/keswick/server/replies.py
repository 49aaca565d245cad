"""What the server answers with: statuses, prepared headers and JSON as the original writes it."""

from http import HTTPStatus
from typing import Any

import msgspec

from keswick._native import Headers
from keswick._native import Reply as Reply

JSON = Headers([("Content-Type", "application/json")])
NDJSON = Headers([("Content-Type", "application/x-ndjson")])
NO_HEADERS = Headers()

EMPTY: Reply = (200, NO_HEADERS, b"")

_NOT_FOUND_HEADERS = Headers([("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff")])
NOT_FOUND: Reply = (404, _NOT_FOUND_HEADERS, b"404 page not found\n")

_encode = msgspec.json.Encoder().encode


class ApiError(Exception):
    """An answer that is not a success: its status, the message for the client, and the headers.

    `right_method`: for 405, the method that the route takes.
    """

    def __init__(self, status: int, message: str, *, headers: Headers = JSON, right_method: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        self.right_method = right_method

    def reply(self) -> Reply:
        """The error body has a line feed between the message and the brace, and none at its end, as the original's."""
        return (self.status, self.headers, b'{"message":' + escaped(_encode(self.message)) + b"\n}")


FORBIDDEN = "not authorized: insufficient permissions"


def forbidden() -> ApiError:
    """The same for a refused, an unassigned and an unknown identity."""
    return ApiError(403, FORBIDDEN)


def json_reply(value: Any) -> Reply:
    """A success with one JSON value and a line feed."""
    return (200, JSON, escaped(_encode(value)) + b"\n")


def sealed_reply(value: msgspec.Struct) -> Reply:
    """As `json_reply`, for values whose strings are base64 only, in which nothing needs escaping: the hot path's."""
    return (200, JSON, _encode(value) + b"\n")


def escaped(document: bytes) -> bytes:
    """Escape what Go's encoder escapes in strings, so that replies stay the same bytes.

    The characters cannot stand outside of strings, so replacing them everywhere is right.
    """
    if b"<" in document or b">" in document or b"&" in document or b"\xe2\x80" in document:
        document = (
            document.replace(b"<", b"\\u003c")
            .replace(b">", b"\\u003e")
            .replace(b"&", b"\\u0026")
            .replace(b"\xe2\x80\xa8", b"\\u2028")
            .replace(b"\xe2\x80\xa9", b"\\u2029")
        )
    return document


INTERNAL_ERROR = ApiError(500, "internal server error").reply()
TIMEOUT = ApiError(503, "request timeout exceeded").reply()


def redirect(location: str, status: int, *, get: bool) -> Reply:
    """To the clean form of a path; a GET carries a small page, as browsers of old want it."""
    if not get:
        return (status, Headers([("Location", location)]), b"")
    page = f'<a href="{_html(location)}">{HTTPStatus(status).phrase}</a>.\n\n'
    return (status, Headers([("Content-Type", "text/html; charset=utf-8"), ("Location", location)]), page.encode())


def _html(text: str) -> str:
    for character, entity in (("&", "&amp;"), ('"', "&#34;"), ("'", "&#39;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(character, entity)
    return text
