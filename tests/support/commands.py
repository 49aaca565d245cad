"""Every command of `kes`, as the program itself knows them."""

from collections.abc import Iterator
from importlib import import_module

from keswick.cli import COMMANDS
from keswick.cli.command import Command, Group


def every_command() -> Iterator[tuple[str, Command]]:
    """Each with its path, such as `kes key create`."""
    for name in COMMANDS:
        yield from _walk(f"kes {name}", import_module(f"keswick.cli.{name}").COMMAND)


def _walk(path: str, command: Command | Group) -> Iterator[tuple[str, Command]]:
    if isinstance(command, Command):
        yield path, command
        return
    if command.default is not None:
        yield path, command.default
    for name, one in command.commands.items():
        yield from _walk(f"{path} {name}", one)
