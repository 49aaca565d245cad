"""Output for people and for programs: a terminal gets words, anything else plain values or JSON."""

import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from typing import Any, TextIO


def is_terminal() -> bool:
    """Whether a person reads the output: only standard output counts."""
    return sys.stdout is not None and sys.stdout.isatty()


def can_redraw(stream: TextIO | None) -> bool:
    """Whether the stream is a terminal on which the cursor can be moved."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") not in (None, "", "dumb")


def has_colour(stream: TextIO | None) -> bool:
    return can_redraw(stream) and not os.environ.get("NO_COLOR")


def printable(text: str) -> str:
    """One line, whatever a name or a server's answer has in it: what would move the cursor is spelled out."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


_THAT_CAN_WAIT = {signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP}


@contextmanager
def uninterrupted() -> Iterator[None]:
    """For what changes or restores a terminal: it takes a moment, and a Ctrl-C has to wait that long.

    Threads that are started meanwhile get no such signal ever: it has to wake the main thread.
    """
    handler = signal.getsignal(signal.SIGINT)
    if handler == signal.SIG_IGN:
        yield
        return
    interrupts: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _THAT_CAN_WAIT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def changed_terminal(change: Callable[[], object], restore: Callable[[], object]) -> Iterator[None]:
    """While a terminal is not as it was. It is restored in the end, and while the command is stopped (Ctrl-Z); what
    would end the process on the spot, such as SIGTERM, is a KeyboardInterrupt."""

    def pause(*_: object) -> None:
        with uninterrupted():
            restore()
            os.kill(os.getpid(), signal.SIGSTOP)
            change()

    handlers: dict[int, Callable[..., None]] = {signal.SIGTSTP: pause, signal.SIGTERM: _end, signal.SIGQUIT: _end}
    former: dict[int, Any] = {}
    try:
        with uninterrupted():
            change()
            for number, handler in handlers.items():
                if signal.getsignal(number) != signal.SIG_IGN:  # as for what nobody could continue
                    former[number] = signal.signal(number, handler)
        yield
    finally:
        with uninterrupted():
            restore()
            for number, handler in former.items():
                signal.signal(number, handler)


def _end(*_: object) -> None:
    raise KeyboardInterrupt


def clear_line() -> None:
    """Wipe out what the terminal shows of a Ctrl-C, where the next prompt will stand."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            with suppress(OSError):
                stream.write("\r\x1b[K" if can_redraw(stream) else "\n")
                stream.flush()
            return


def write_value(text: str) -> None:
    """One value; a program gets it without a newline behind it."""
    print(text, end="\n" if is_terminal() else "")


def columns() -> int:
    """How wide standard output is now, if it is a terminal; else 80."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or 80
    except OSError:
        return 80


def fit(text: str, width: int) -> str:
    """The text in exactly so many columns: padded, or cut with an ellipsis."""
    if text.isascii():
        return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"
    from rich.cells import cell_len, set_cell_size

    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def short_duration(seconds: float) -> str:
    """How long something took, in two or three digits: `250µs`, `1.5ms`, `12ms`, `3.1s`, `2m5s`."""
    if seconds >= 60:
        from keswick.config import duration

        return duration.format(round(seconds))
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            value = seconds / size
            return (f"{value:.1f}".removesuffix(".0") if value < 10 else f"{value:.0f}") + unit
    return f"{seconds * 1e9:.0f}ns" if seconds > 0 else "0s"


def uptime(seconds: float) -> str:
    """How long a server runs: `44 seconds`, `5 minutes`, `23 hours`, `2 days 3 hours`."""
    whole = int(seconds)
    if whole <= 60:
        return _counted(whole, "second")
    if whole < 3600:
        return _counted(whole // 60, "minute")
    if whole <= 24 * 3600:
        return _counted(whole // 3600, "hour")
    return f"{_counted(whole // 86400, 'day')} {_counted(whole // 3600 % 24, 'hour')}"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def size(count: float) -> str:
    """Bytes, in decimal units: `589.8KB`, `4.5MB`."""
    if count < 1000:
        return f"{count:.0f}B"
    power = min(int(math.log10(count)) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.1f}{_UNITS[power]}"


_UNITS = ("B", "KB", "MB", "GB", "TB")


def to_json(value: object, *, indented: bool = False) -> str:
    """One line as the original writes it: no spaces, and `<`, `>`, `&` escaped; or lines, indented by two spaces."""
    import json

    indent, colon = (2, ": ") if indented else (None, ":")
    text = json.dumps(value, separators=(",", colon), ensure_ascii=False, indent=indent)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def ask_password(prompt: str) -> str:
    """Ask on the terminal, wherever the standard streams lead, and without an echo.

    Raises CommandError when there is no terminal or nothing was typed.
    """
    import termios

    from keswick.cli.command import CommandError

    try:
        with open("/dev/tty", "r+b", buffering=0) as tty:
            line = _line_without_echo(tty, prompt)
    except (OSError, termios.error):
        raise CommandError("a password is needed, and there is no terminal to ask for it") from None
    if not line:
        raise CommandError("no password given")
    try:
        return line.removesuffix(b"\n").decode()
    except UnicodeDecodeError:
        raise CommandError("the password is not UTF-8 text") from None


def _line_without_echo(tty: FileIO, prompt: str) -> bytes:
    import termios

    shown = termios.tcgetattr(tty)
    hidden = shown.copy()
    hidden[3] &= ~termios.ECHO

    def hide() -> None:
        termios.tcsetattr(tty, termios.TCSAFLUSH, hidden)
        tty.write(prompt.encode())

    def show() -> None:
        termios.tcsetattr(tty, termios.TCSAFLUSH, shown)
        tty.write(b"\n")

    with changed_terminal(hide, show):
        return tty.readline()
