"""What a dialect is, and the tools that the tables of old ones are made with."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from keswick._native import Headers
from keswick.keystore import KeyStoreError
from keswick.server.bodies import BadBody
from keswick.server.call import Answer, Call, Handler
from keswick.server.replies import EMPTY, NDJSON, NOT_FOUND, TIMEOUT, ApiError, Reply, escaped

_encode = msgspec.json.Encoder().encode


def as_today(call: Call, error: ApiError) -> Reply:
    return error.reply()


@dataclass(frozen=True, slots=True)
class Dialect:
    """What is not said is as today."""

    name: str
    handlers: Mapping[str, Handler] = field(default_factory=dict)
    """What answers instead of the route's own handler, by the route's path."""
    refuse: Callable[[Call, ApiError], Reply] = as_today
    """How a refusal is worded."""
    unknown: Reply = NOT_FOUND
    """The answer to a path that no route has."""
    redirect: int = 307
    """The status that sends a client to the clean form of a path."""
    posts: bool = False
    """Whether routes that take both PUT and POST were called with POST."""
    timeout: Reply = TIMEOUT
    body_limits: Mapping[str, int] = field(default_factory=dict)
    """Bytes, by the route's path."""

    def method(self, today: str) -> str:
        """What the method of a route was in that time."""
        return _posted(today) if self.posts else today


def _posted(method: str) -> str:
    """Until October 2023 nothing was put."""
    return "POST" if method == "PUT" else method


# --- refusals ---

OLD_ERROR = [("Content-Type", "application/json; charset=utf-8"), ("X-Content-Type-Options", "nosniff")]
"""The headers of a refusal before October 2023."""
_OLD_ERROR = Headers(OLD_ERROR)

Rewording = Callable[[Call, ApiError], tuple[int, str]]
"""From a refusal of today to the status and the message of another time."""
Words = Mapping[str, "str | Rewording"]
"""What becomes of a message that begins so. Where it is another message, the status stays."""


def old_error(status: int, message: str, headers: Headers = _OLD_ERROR) -> Reply:
    return (status, headers, b'{"message":' + escaped(_encode(message)) + b"}")


def refusal(words: Words, *, first: Callable[[Call], str] = lambda call: "") -> Callable[[Call, ApiError], Reply]:
    """`words`: from the beginning of today's message; the first that fits. `first`: what was looked at before policies
    were, and is refused with 400: the message, or nothing."""

    def refuse(call: Call, error: ApiError) -> Reply:
        if error.status == 405:
            headers = Headers([*OLD_ERROR, ("Accept", _posted(error.right_method))])
            return old_error(405, "Method Not Allowed", headers)
        is_of_policy = error.status == 403 or error.message.startswith("tls: ")
        if is_of_policy and (message := first(call)):
            return old_error(400, message)
        for beginning, reworded in words.items():
            if error.message.startswith(beginning):
                status, message = (error.status, reworded) if isinstance(reworded, str) else reworded(call, error)
                return old_error(status, message)
        return old_error(error.status, error.message)

    return refuse


# --- successes ---

TEXT = Headers([("Content-Type", "text/plain; charset=utf-8")])
"""What JSON without a type of its own was taken for."""


def retyped(handler: Handler, change: Callable[[Reply], Reply]) -> Handler:
    """The same answer in another form."""

    def answer(call: Call) -> Answer:
        reply = handler(call)
        if reply is None or isinstance(reply, tuple):
            return change(reply) if reply is not None else None
        return finish(reply)

    async def finish(waiting: Awaitable[Reply | None]) -> Reply | None:
        reply = await waiting
        return change(reply) if reply is not None else None

    return answer


def as_text(reply: Reply) -> Reply:
    """JSON without a type. An empty answer has none anyway."""
    return (reply[0], TEXT, reply[2]) if reply[2] else reply


def null_when_empty(reply: Reply) -> Reply:
    """Until 2024 an empty text came out as null."""
    return reply if reply[2] != b'{"plaintext":""}\n' else (reply[0], reply[1], b'{"plaintext":null}\n')


def needs_body(handler: Handler) -> Handler:
    """Only since October 2023 an empty body stands for an empty object."""

    def answer(call: Call) -> Answer:
        if not call.request.body:
            raise BadBody
        return handler(call)

    return answer


def unless_absent(handler: Handler) -> Handler:
    """A delete that succeeds when there is nothing to delete."""

    async def answer(call: Call) -> Reply | None:
        try:
            reply = handler(call)
            return reply if reply is None or isinstance(reply, tuple) else await reply
        except ApiError as error:
            if error.status != 404:
                raise
            return EMPTY

    return answer


Glob = Callable[[str], bool]


async def key_names(call: Call, matches: Glob) -> list[str]:
    """All names of keys that match, sorted; there were no pages. Raises ApiError 502."""

    def matching() -> list[str]:
        return sorted(filter(matches, call.state.store.list("")))

    try:
        return await call.state.cache.ask(matching, listing=True)
    except KeyStoreError as error:
        raise call.failed("failed to list keys", error) from error


def json_lines(values: Sequence[Mapping[str, Any]], headers: Headers = NDJSON) -> Reply:
    return (200, headers, b"".join(escaped(_encode(value)) + b"\n" for value in values))


def json_text(value: Any, *, headers: Headers = TEXT, end: bytes = b"\n") -> Reply:
    return (200, headers, escaped(_encode(value)) + end)
