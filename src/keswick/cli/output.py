"""The forms that several commands print in: lists under a header, values with labels, dates."""

import sys
from collections.abc import Iterable

from keswick.cli.command import Arguments, Flag
from keswick.cli.terminal import has_colour, is_terminal, printable, to_json

JSON = Flag("json", "Print JSON.")
COLOUR = Flag("color", "'always', 'auto' (the default) or 'never'.", value="WHEN", choices=("always", "auto", "never"))
ENCLAVE = Flag("enclave", "Accepted and ignored, as the original does.", short="e", value="NAME")

UNDERLINED, GREEN, YELLOW, RED = "4", "32", "33", "31"
"""Codes of ECMA-48, Select Graphic Rendition."""


def wants_colour(arguments: Arguments) -> bool:
    """What `--color` says, or else the terminal."""
    when = (arguments.value("color") or "auto").lower()
    if when not in COLOUR.choices:
        arguments.fail(f'invalid argument "{when}" for "--color" flag: invalid color option')
    return when == "always" or (when == "auto" and has_colour(sys.stdout))


def styled(text: str, code: str, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def warn(text: str) -> None:
    """A line on standard error, if there is one: for `print`, None is standard output."""
    if sys.stderr is not None:
        sys.stderr.write(f"Warning: {printable(text)}\n")


def print_names(header: str, names: Iterable[str], arguments: Arguments) -> None:
    """A list under its header; as JSON an array, null when it is empty."""
    names, colour = list(names), wants_colour(arguments)
    if arguments.has("json"):
        print(to_json(names or None))
    elif names:
        if is_terminal():  # what old releases took for a name must not move the cursor
            names = [printable(name) for name in names]
        print("\n".join([styled(header, UNDERLINED, colour), *names]))


def labelled(*rows: tuple[str, str]) -> str:
    """A line for each row that has a value, the values one below the other."""
    return "\n".join(f"{label:<11} {value}" for label, value in rows if value)


def known(**fields: object) -> dict[str, object]:
    """Fields for JSON, without those that are empty because the server does not tell them."""
    return {name: value for name, value in fields.items() if value not in ("", {})}


def rules(patterns: Iterable[str]) -> dict[str, dict[str, object]]:
    """The rules of a policy as the API of today has them in JSON: an object whose keys are the patterns."""
    return {pattern: {} for pattern in patterns}


def date(text: str, *, local: bool = False) -> str:
    """An RFC 3339 time as `2026-11-22 02:10:08`, as it stands or in the time of this machine."""
    from datetime import datetime  # late: most commands show no date

    try:
        moment = datetime.fromisoformat(text)
        return f"{moment.astimezone() if local else moment:%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return text
