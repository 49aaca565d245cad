"""`kes config`: configuration files of older releases."""

import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from keswick.cli.command import Arguments, Command, CommandError, Flag, Group
from keswick.files import new_file


def migrate(arguments: Arguments) -> None:
    """The new file on standard output or in a file, and what there is to know of it on standard error."""
    from keswick.config import ConfigError, migration
    from keswick.server.routes import APIS

    old = arguments.word(0, "configuration file")
    arguments.at_most(1)
    release = arguments.value("release")
    if release not in (None, "2022", "2023"):
        arguments.fail(f"'--release' is 2022 (v0.17.2 to v0.22) or 2023, not {release!r}")
    try:
        migrated = migration.migrate(old, apis=APIS, keep_dialect=arguments.has("keep-dialect"), release=release)
    except ConfigError as error:
        raise CommandError(str(error)) from None
    new = arguments.value("output")
    if new is None:
        print(migrated.text, end="")
    else:
        _write(old, new, migrated.text)
    _tell("What changes:", migrated.changed)
    _tell("What stays, because it is written down now:", migrated.kept)
    _tell("What is left to do:", migrated.left)


def _write(old: str, new: str, text: str) -> None:
    mode = stat.S_IMODE(Path(old).stat().st_mode) & 0o666  # whoever may not read the old file may not read the new one
    try:
        with new_file(Path(new), mode=mode) as draft:
            draft.write(text.encode())
    except FileExistsError:
        raise CommandError(f"'{new}' already exists; nothing is overwritten") from None


def _tell(title: str, sentences: Sequence[str]) -> None:
    if sentences and sys.stderr is not None:
        print("\n".join([title, *_items(sentences)]), file=sys.stderr)


def _items(sentences: Iterable[str]) -> list[str]:
    from keswick.cli.terminal import printable

    return [f"  - {printable(sentence)}" for sentence in sentences]


COMMAND = Group(
    "Write configuration files of older releases in the present form.",
    {
        "migrate": Command(
            "OLD",
            "Write a configuration of 2020 to 2023 in the present form.",
            migrate,
            (
                Flag("output", "Write this file instead of standard output. It must not exist.", "o", "NEW"),
                Flag("keep-dialect", "Let the API answer in the words of the old release, with 'compatibility'."),
                Flag("release", "What a file of the present form was written for: 2022 or 2023.", value="YEAR"),
            ),
            details=(
                "What changes in meaning, and what is left to do, is told on standard error. References to the "
                "environment stay references."
            ),
            examples=(
                "kes config migrate server-config.yml",
                "kes config migrate server-config.yml --output config.yaml --keep-dialect",
                "kes config migrate config.of-2023.yml --release 2023",
            ),
        ),
    },
)
