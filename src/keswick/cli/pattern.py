"""Patterns of names, as the `list` commands of 2021 take them."""

import re
from collections.abc import Callable

from keswick.cli.command import Arguments


def glob(arguments: Arguments) -> tuple[str, Callable[[str], bool]]:
    """The one word of a command is a glob; if there is none, all names match. With what they begin, which is what a
    server is asked for, and whether a name is one of them."""
    from keswick import policy  # late: most commands have no patterns

    arguments.at_most(1)
    pattern = "".join(arguments.words) or "*"
    try:
        matches = policy.glob(pattern)
    except policy.PatternError as error:
        arguments.fail(str(error))
    return re.split(r"[*?\\[]", pattern, maxsplit=1)[0], matches
