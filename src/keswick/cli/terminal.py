"""Output for people and for programs: a terminal gets words, anything else plain values or JSON."""

import os
import sys
from typing import TextIO


def is_terminal() -> bool:
    """Whether a person reads the output: only standard output counts."""
    return sys.stdout is not None and sys.stdout.isatty()


def has_colour(stream: TextIO | None) -> bool:
    if stream is None or not stream.isatty():
        return False
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in (None, "", "dumb")


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
