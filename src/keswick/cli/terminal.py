"""Output for people and for programs: a terminal gets words, anything else plain values or JSON."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


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


@contextmanager
def uninterrupted() -> Iterator[None]:
    """For what leaves a terminal clean: it takes a moment, and another Ctrl-C must not cut it short."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def write_value(text: str) -> None:
    """One value; a program gets it without a newline behind it."""
    print(text, end="\n" if is_terminal() else "")


def to_json(value: object) -> str:
    """One line as the original writes it: no spaces, and `<`, `>`, `&` escaped."""
    import json

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def ask_password(prompt: str) -> str:
    """Ask on the terminal, without an echo; the prompt goes to stderr, so that stdout stays what a program reads.

    Raises CommandError when there is no terminal or nothing was typed.
    """
    from getpass import getpass

    from keswick.cli.command import CommandError

    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise CommandError("a password is needed, and there is no terminal to ask for it") from None
    try:
        return getpass(prompt, stream=sys.stderr)
    except EOFError:
        raise CommandError("no password given") from None
