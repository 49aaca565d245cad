"""The error log and the audit log: to the console, and live to whoever reads a log stream.

A caller only puts an event into a bounded queue. A thread of each log renders the events, writes them and sends them to
the streams, so that neither a slow console nor a slow reader holds a request up. What does not fit is dropped and
counted.
"""

import os
import re
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from keswick.encoding import rfc3339

DEBUG, INFO, WARN, ERROR = -4, 0, 4, 8
_LEVELS = {DEBUG: "DEBUG", INFO: "INFO", WARN: "WARN", ERROR: "ERROR"}

QUEUE_EVENTS = 8192
"""The queue's bound. Half of it is more than the requests that the transport lets in at once."""
PAUSE_SECONDS = 0.01
"""Events of this time are written together, so that a busy server is not interrupted for each."""
REPEATS = 10
"""Lines of one and the same error in a second; the others are counted. In an outage thousands of requests may fail."""
MAX_PATH = 1024
MAX_VALUE = 4096
"""Characters. What is longer is cut: no real path or message is."""

Event = TypeVar("Event")
AuditForm = Literal["ms", "ns", "2023", "2021"]
"""Of audit events: the unit of the response time. In 2023 it was nanoseconds, rounded to microseconds; in 2021 and 2022
nanoseconds, with events in whole seconds and without an address."""


class LogStream(Protocol):
    """What a log sends events to; the transport's Stream is one."""

    @property
    def closed(self) -> bool: ...

    def send(self, data: bytes, /) -> bool:
        """Never waits. False when the reader is too slow, or gone."""

    def on_close(self, callback: Callable[[], None], /) -> None: ...


class _Log(Generic[Event]):
    """The queue, the thread behind it, and the streams. A log renders its events in forms that it names by a word."""

    def __init__(self, file: int, queue_events: int) -> None:
        self.events = 0
        """Events since the start. A plain number: one lost between two threads is no harm."""
        self.dropped = 0
        """Events that did not reach the console, or anybody: the queue was full, or they could not be written."""
        self.lost = 0
        """Events that did not reach a stream because its reader was too slow."""
        self._file = file
        self._queue_events = queue_events
        self._queue: SimpleQueue[tuple[Event, str | None] | None] = SimpleQueue()
        self._streams: tuple[tuple[LogStream, str], ...] = ()
        self._changing = threading.Lock()
        self._closing = threading.Event()
        self._writer: threading.Thread | None = None
        self._broken = False
        self._torn = False

    def close(self, timeout: float = 5.0) -> None:
        """Write what is queued, at most for `timeout` seconds. Later events are dropped. Idempotent."""
        self._closing.set()
        if self._writer is not None:
            self._queue.put(None)
            self._writer.join(timeout)

    def _render(self, event: Event, form: str) -> bytes:
        """One line."""
        raise NotImplementedError

    def _subscribe(self, stream: LogStream, form: str) -> None:
        with self._changing:
            self._streams = (*self._streams, (stream, form))
        stream.on_close(lambda: self._unsubscribe(stream))

    def _unsubscribe(self, stream: LogStream) -> None:
        with self._changing:
            self._streams = tuple(entry for entry in self._streams if entry[0] is not stream)

    def _submit(self, event: Event, console: str | None) -> None:
        """Queue an event; `console` is the form for the console, None if it does not go there."""
        if self._closing.is_set() or self._queue.qsize() >= self._queue_events:
            self._drop(1)
            return
        if self._writer is None:
            self._start()
        self._queue.put((event, console))

    def _drop(self, events: int) -> None:
        with self._changing:
            self.dropped += events

    # --- on the log's own thread ---

    def _start(self) -> None:
        with self._changing:
            if self._writer is None:
                self._writer = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
                self._writer.start()

    def _run(self) -> None:
        open_ended = True
        while open_ended:
            batch: list[tuple[Event, str | None] | None] = []
            with suppress(Empty):
                batch.append(self._queue.get(timeout=self._patience()))
                while len(batch) < self._queue_events:
                    batch.append(self._queue.get_nowait())
            open_ended = None not in batch
            events = [event for item in batch if item is not None for event in self._condense(*item)]
            events += self._held_back(now=not open_ended)
            self._write([line for event in events for line in self._deliver(*event)])
            self._closing.wait(PAUSE_SECONDS)

    def _condense(self, event: Event, console: str | None) -> Sequence[tuple[Event, str | None]]:
        """What of an event to deliver at once."""
        return ((event, console),)

    def _held_back(self, *, now: bool) -> Sequence[tuple[Event, str | None]]:
        """Events that stand for what was not delivered at once, when they are due or have to be delivered now."""
        return ()

    def _patience(self) -> float | None:
        """Seconds until there may be such events."""
        return None

    def _deliver(self, event: Event, console: str | None) -> Sequence[bytes]:
        """Send an event to the streams, each form rendered once; what is left to do is the line for the console."""
        streams = self._streams
        forms = {form for _, form in streams} | ({console} if console else set())
        try:
            lines = {form: self._render(event, form) for form in forms}
        except Exception:  # whatever it is, the thread must live
            self._drop(1)
            return ()
        for stream, form in streams:
            self._send(stream, lines[form])
        return (lines[console],) if console else ()

    def _send(self, stream: LogStream, line: bytes) -> None:
        try:
            if stream.send(line):
                return
            closed = stream.closed
        except Exception:  # one broken stream must not cost the others their events
            closed = True
        if closed:
            self._unsubscribe(stream)
        else:
            self.lost += 1

    def _write(self, lines: Sequence[bytes]) -> None:
        """Write all lines. When the console fails they are dropped, and the next ones try again."""
        if not lines:
            return
        rest = b"".join(lines)
        try:
            if self._torn:
                os.write(self._file, b"\n")  # end what a write that failed left half done
                self._torn = False
            while rest:
                try:
                    written = os.write(self._file, rest)
                except BlockingIOError:
                    select.select([], [self._file], [], 1.0)
                    continue
                self._torn = not rest[:written].endswith(b"\n")
                rest = rest[written:]
        except OSError:
            self._broken = True
            self._drop(rest.count(b"\n"))
        else:
            self._broken = False


# --- the error log ---


class _Message(NamedTuple):
    time: int
    level: int
    text: str
    attributes: Mapping[str, object]


class _StreamedMessage(msgspec.Struct):
    message: str


class ErrorLog(_Log[_Message]):
    """Lines of `key=value` to standard error, for people and for log collectors.

    `level`: what is below it is not written to the console. Streams get events from INFO on, or from `level` on if that
    is lower. `of_2023`: events are lines that begin with the local time, as until October 2023; on a console that is no
    terminal they are `{"message": "<line>"}`, as in the streams.
    """

    def __init__(self, level: int = INFO, *, file: int = 2, queue_events: int = QUEUE_EVENTS) -> None:
        super().__init__(file, queue_events)
        self.level = level
        self.of_2023 = False
        self._warned: set[str] = set()
        self._repeats: dict[str, int] = {}
        """How often each error has come since the second began. The log's own thread counts."""
        self._last_repeats: dict[str, tuple[_Message, str | None]] = {}
        self._second_ends = 0.0
        self._encode = msgspec.json.Encoder().encode

    def error(self, message: str, attributes: Mapping[str, object] | None = None) -> None:
        """Log an error. Attributes have dotted names, such as `req.path`; empty ones are left out."""
        self._log(ERROR, message, attributes)

    def warn(self, message: str, attributes: Mapping[str, object] | None = None) -> None:
        self._log(WARN, message, attributes)

    def warn_once(self, message: str, attributes: Mapping[str, object] | None = None) -> None:
        """Log a warning, unless the same message was one before. It must be one of a few."""
        if message not in self._warned:
            self._warned.add(message)
            self.warn(message, attributes)

    def info(self, message: str, attributes: Mapping[str, object] | None = None) -> None:
        self._log(INFO, message, attributes)

    def debug(self, message: str, attributes: Mapping[str, object] | None = None) -> None:
        self._log(DEBUG, message, attributes)

    def subscribe(self, stream: LogStream) -> None:
        """Send events as `{"message": "<line>"}` until the stream is closed."""
        self._subscribe(stream, "json")

    def _log(self, level: int, message: str, attributes: Mapping[str, object] | None) -> None:
        if level < min(self.level, INFO):
            return
        self.events += 1
        on_console = level >= self.level
        if on_console or self._streams:
            self._submit(
                _Message(time.time_ns(), level, message, dict(attributes or {})), "text" if on_console else None
            )

    # --- on the log's own thread ---

    def _condense(self, event: _Message, console: str | None) -> Sequence[tuple[_Message, str | None]]:
        if event.level < ERROR:
            return ((event, console),)
        if not self._repeats:
            self._second_ends = time.monotonic() + 1
        seen = self._repeats[event.text] = self._repeats.get(event.text, 0) + 1
        if seen <= REPEATS:
            return ((event, console),)
        self._last_repeats[event.text] = event, console
        return ()

    def _held_back(self, *, now: bool) -> Sequence[tuple[_Message, str | None]]:
        if not now and time.monotonic() < self._second_ends:
            return ()
        held_back = [
            (event._replace(attributes={"log.repeated": self._repeats[text] - REPEATS}), console)
            for text, (event, console) in self._last_repeats.items()
        ]
        self._repeats.clear()
        self._last_repeats.clear()
        return held_back

    def _patience(self) -> float | None:
        return max(0.0, self._second_ends - time.monotonic()) if self._repeats else None

    def _render(self, event: _Message, form: str) -> bytes:
        if self.of_2023:
            moment = datetime.fromtimestamp(event.time // 1_000_000_000).strftime("%Y/%m/%d %H:%M:%S")
            line = f"{moment} {_printable(event.text)}"
        else:
            moment = datetime.fromtimestamp(event.time // 1_000_000 / 1000, UTC).isoformat(timespec="milliseconds")
            line = f"time={moment.removesuffix('+00:00')}Z level={_LEVELS[event.level]} msg={_value(event.text)}"
        for name, value in event.attributes.items():
            if value not in (None, ""):
                line += f" {_value(name)}={_value(value)}"
        if form == "text" and (not self.of_2023 or os.isatty(self._file)):
            return line.encode() + b"\n"
        return self._encode(_StreamedMessage(line)) + b"\n"


_NEEDS_QUOTES = re.compile('[ ="]')
_ESCAPES = {
    '"': r"\"",
    "\\": r"\\",
    "\a": r"\a",
    "\b": r"\b",
    "\f": r"\f",
    "\n": r"\n",
    "\r": r"\r",
    "\t": r"\t",
    "\v": r"\v",
}


def _value(value: object) -> str:
    """A value as Go's text logs show it: quoted when it could be taken for more than one, always on one line."""
    text = str(value)
    if len(text) > MAX_VALUE:
        text = text[:MAX_VALUE] + "…"
    if text and text.isprintable() and not _NEEDS_QUOTES.search(text):
        return text
    return '"' + "".join(_ESCAPES.get(char) or _printable(char) for char in text) + '"'


def _printable(text: str) -> str:
    """On one line, whatever it holds."""
    text = text[:MAX_VALUE]
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


# --- the audit log ---


class _Answered(NamedTuple):
    time: int
    ip: str
    path: str
    identity: str
    via: str
    code: int
    duration: int


class _Request(msgspec.Struct, omit_defaults=True):
    ip: str
    path: str
    identity: str = ""
    via: str = ""


class _Response(msgspec.Struct):
    code: int
    time: int


class _AuditEvent(msgspec.Struct):
    time: str
    request: _Request
    response: _Response


class _Request2021(msgspec.Struct):
    path: str
    identity: str


class _AuditEvent2021(msgspec.Struct):
    time: str
    request: _Request2021
    response: _Response


class AuditLog(_Log[_Answered]):
    """One JSON object per request and line, to standard output if that is enabled, and to streams."""

    def __init__(self, *, file: int = 1, queue_events: int = QUEUE_EVENTS) -> None:
        super().__init__(file, queue_events)
        self._encode = msgspec.json.Encoder().encode
        self.configure(enabled=False)

    def configure(
        self, *, enabled: bool, skip: Sequence[str] = (), required: bool = False, form: AuditForm = "ms"
    ) -> None:
        """`skip`: paths that are not recorded; one that ends in `*` stands for all that begin so.
        `required`: see `ready`. `form`: on the console.
        """
        self.enabled = enabled
        self.required = required and enabled
        self._form = form
        self._skipped = frozenset(path for path in skip if not path.endswith("*"))
        self._skipped_prefixes = tuple(path[:-1] for path in skip if path.endswith("*"))

    @property
    def active(self) -> bool:
        """Whether anybody reads the log. If not, there is nothing to record."""
        return self.enabled or bool(self._streams)

    def ready(self) -> bool:
        """Whether a request may be let in: when the log is required, not while its events might be lost."""
        if not self.required:
            return True
        return not self._broken and self._queue.qsize() < self._queue_events // 2

    def record(
        self,
        time_ns: int,
        ip: str,
        path: str,
        identity: str | None,
        code: int,
        duration_ns: int,
        via: str | None = None,
    ) -> None:
        """Record an answered request. `identity` is the caller's, `via` that of the TLS proxy it came through."""
        if not self.active or path in self._skipped or path.startswith(self._skipped_prefixes):
            return
        self.events += 1
        if len(path) > MAX_PATH:
            path = path[:MAX_PATH] + "…"
        event = _Answered(time_ns, ip, path, identity or "", via or "", code, duration_ns)
        self._submit(event, self._form if self.enabled else None)

    def subscribe(self, stream: LogStream, *, form: AuditForm = "ms") -> None:
        """Send events until the stream is closed."""
        self._subscribe(stream, form)

    def _render(self, event: _Answered, form: str) -> bytes:
        path = event.path.encode(errors="replace").decode()  # what is no text must not keep an event out of the log
        duration = event.duration
        if form == "ms":
            duration //= 1_000_000
        elif form == "2023":
            duration = round(duration, -3)
        response = _Response(event.code, duration)
        if form == "2021":
            moment = rfc3339(event.time // 1_000_000_000 * 1_000_000_000)
            return self._encode(_AuditEvent2021(moment, _Request2021(path, event.identity), response)) + b"\n"
        request = _Request(event.ip, path, event.identity, event.via)
        return self._encode(_AuditEvent(rfc3339(event.time), request, response)) + b"\n"
