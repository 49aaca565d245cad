"""What a command reads from standard input, where its argument is `-`."""

import sys

from keswick.cli.command import Arguments

_MOST = 1 << 20  # bytes; servers take no more in one call


def read_bytes(arguments: Arguments, what: str) -> bytes:
    """All of standard input. A terminal is refused: what is typed there is a secret or base64, and would be seen."""
    if sys.stdin is None:
        arguments.fail(f"no {what} specified: standard input is closed")
    if sys.stdin.isatty():
        arguments.fail(f"no {what} specified: standard input is a terminal; write the {what} into a pipe or a file")
    data = sys.stdin.buffer.read(_MOST + 1)
    if len(data) > _MOST:
        arguments.fail(f"the {what} on standard input is longer than {_MOST >> 20} MiB")
    return data


def read_word(arguments: Arguments, what: str) -> str:
    """One word, such as an API key or base64, without the white space around it."""
    word = read_bytes(arguments, what).decode("utf-8", "surrogateescape").strip()
    if not word:
        arguments.fail(f"no {what} specified")
    return word
