"""What a command reads from standard input, where its argument is `-`."""

import sys

from keswick.cli.command import Arguments, CommandError

MOST = 1 << 20
"""Bytes; servers take no more in one call."""


def read_bytes(arguments: Arguments, what: str, *, most: int = MOST, advice: str = "") -> bytes:
    """All of standard input, up to `most` bytes; `advice` is for more.

    A terminal is refused: what is typed there is a secret or base64, and would be seen.
    """
    if sys.stdin is None:
        arguments.fail(f"no {what} specified: standard input is closed")
    if sys.stdin.isatty():
        arguments.fail(f"no {what} specified: standard input is a terminal; write the {what} into a pipe or a file")
    try:
        data = sys.stdin.buffer.read(most + 1)
    except OSError as error:
        raise CommandError(f"standard input: {error.strerror or error}") from None
    if len(data) > most:
        arguments.fail(f"the {what} on standard input is longer than {most >> 10} KiB{advice}")
    return data


def read_word(arguments: Arguments, what: str) -> str:
    """One word, such as an API key or base64, without the white space around it."""
    word = read_bytes(arguments, what).decode("utf-8", "surrogateescape").strip()
    if not word:
        arguments.fail(f"no {what} specified")
    return word
