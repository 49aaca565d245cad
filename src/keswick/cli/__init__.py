"""The command line. Each command group is a module, imported only when it is called."""

import gc
import io
import os
import sys
from contextlib import suppress

from keswick.cli.command import (
    HELP,
    CommandError,
    Flag,
    HelpWanted,
    parse,
    root_help,
    run,
    unknown_command,
)

COMMANDS = {
    "server": "Start a server.",
    "init": "Set up a folder with everything a first server needs.",
    "key": "Create, use and manage keys.",
    "ls": "List keys, policies or identities.",
    "migrate": "Move keys from one key store to another.",
    "identity": "Make API keys and certificates, and compute identities.",
}
"""Every command with its summary; `keswick.cli.<name>.COMMAND` is the command or group itself."""

_FLAGS = (Flag("version", "Print the version.", short="v"), HELP)
_EXAMPLES = ("kes init ./kes", "kes server --config ./kes/config.yaml", "kes key create my-key", "kes key --help")


def main(argv: list[str] | None = None) -> int:
    """Run one command. The exit code: 0 success, 1 an error, 2 when help was printed."""
    # Imports make many objects and no garbage: the collector would take a tenth of a command's time for nothing. What
    # runs for long switches it on again.
    gc.disable()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # UTF-8 in every locale, and bytes that are not UTF-8 as they came
            stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        code = _run(sys.argv[1:] if argv is None else argv) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except HelpWanted as help_:
        _tell(str(help_))
        return 2
    except BrokenPipeError:  # whoever read the output has gone, and wants no words about it either
        return 1
    except CommandError as error:
        return _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(where + (error.strerror or str(error)))
    finally:
        _drop_unwritten()
    return code


def _run(words: list[str]) -> int | None:
    name = words[0] if words else ""
    if not words or name.startswith("-"):
        try:
            arguments = parse(words, "kes", _FLAGS)
            arguments.at_most(0)
        except HelpWanted:
            arguments = None
        if arguments is None or not arguments.has("version"):
            from keswick.cli.connection import ENVIRONMENT, ENVIRONMENT_DETAILS

            raise HelpWanted(root_help(COMMANDS, _FLAGS, ENVIRONMENT, _EXAMPLES, ENVIRONMENT_DETAILS))
        from keswick.about import version_lines

        print("\n".join(version_lines()))
        return 0
    if name not in COMMANDS:
        raise unknown_command(name, "kes", "kes", tuple(COMMANDS))
    from importlib import import_module

    return run(name, import_module(f"keswick.cli.{name}").COMMAND, words[1:])


def _fail(message: str) -> int:
    from keswick.cli.terminal import has_colour, printable

    label = "\x1b[31mError: \x1b[0m" if has_colour(sys.stderr) else "Error: "
    _tell(f"{label}{printable(message)}\n")
    return 1


def _tell(text: str) -> None:
    if sys.stderr is not None:  # for `print`, None is standard output
        with suppress(OSError):  # nobody can be told
            sys.stderr.write(text)


def _drop_unwritten() -> None:
    """What standard output has not taken by now it never will, and the interpreter would try again and complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
