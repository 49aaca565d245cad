"""The examples: what is shown to be typed is what the commands take."""

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from keswick.cli import COMMANDS
from keswick.cli.command import Command, Group, parse

ROOT = Path(__file__).parents[2]
PAGES = (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def shell_lines() -> Iterator[str]:
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            yield from (line for line in block.replace("\\\n", " ").splitlines() if re.search(r"\bkes\b", line))


def calls(line: str) -> Iterator[list[str]]:
    """The words that follow `kes`, wherever it is called in a line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] | None = None
    for token in lexer:
        if set(token) <= set("();<>|&"):
            if words is not None:
                yield words
            words = None
        elif words is not None:
            words.append(token)
        elif token == "kes":
            words = []
    if words is not None:
        yield words


def find(words: list[str]) -> tuple[str, Command, list[str]]:
    """The command that the first words name, and the words that it gets."""
    assert words[0] in COMMANDS, words
    command: Command | Group = import_module(f"keswick.cli.{words[0]}").COMMAND
    path, rest = f"kes {words[0]}", words[1:]
    while isinstance(command, Group):
        word = command.spellings.get(rest[0], rest[0]) if rest else ""
        if word not in command.commands:
            assert command.default is not None, words
            return path, command.default, rest
        path, command, rest = f"{path} {rest[0]}", command.commands[word], rest[1:]
    return path, command, rest


@pytest.mark.parametrize("line", sorted(set(shell_lines())))
def test_a_shell_example_names_commands_and_flags_that_exist(line: str) -> None:
    for words in calls(line):
        if not words or words[0].startswith("-"):  # kes --version
            continue
        path, command, rest = find(words)
        given = parse(rest, path, command.flags).words
        assert given or not re.match(r"\w", command.arguments), f"{path} wants {command.arguments}"
