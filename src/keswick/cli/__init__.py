"""The command line. Each command group is a module, imported only when it is called."""

import gc
import io
import os
import sys
from contextlib import suppress
from importlib import import_module

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
    "policy": "Look at the server's policies, and change them while it runs.",
    "identity": "Make API keys and certificates, compute identities, look them up, and assign policies to them.",
    "seal": "Seal a file under a key of the server.",
    "unseal": "Unseal what 'kes seal' made.",
    "status": "Show how the servers are.",
    "metric": "Show what a server is doing: requests, response times, memory.",
    "log": "Follow the audit log or the error log of a server.",
    "migrate": "Move keys from one key store to another.",
    "backup": "Back up an encrypted folder into one file.",
    "restore": "Restore an encrypted folder from a backup.",
    "reseal": "Change the seal of an encrypted folder.",
    "config": "Write configuration files of older releases in the present form.",
    "doctor": "Find out why a server does not start, or does not serve.",
    "audit": "Follow the audit log, as in 2020.",
    "tool": "Commands in the form of 2021.",
    "update": "Tell how to upgrade.",
    "completion": "Print the completion of commands for a shell.",
}
"""Every command with its summary; `keswick.cli.<name>.COMMAND` is the command or group itself."""

FLAGS = (
    Flag("version", "Print the version.", short="v"),
    Flag("update", "Tell how to upgrade.", short="u"),
    Flag("auto-completion", "Install the completion of commands for the shell in $SHELL."),
    HELP,
)
"""Of `kes` itself."""
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
    if "COMP_LINE" in os.environ:  # a shell asks how the line could go on
        from keswick.cli.completion import answer

        answer(words)
        return 0
    if not words or name.startswith("-"):
        return _without_command(words)
    if name not in COMMANDS:
        raise unknown_command(name, "kes", "kes", tuple(COMMANDS))
    return run(name, import_module(f"keswick.cli.{name}").COMMAND, words[1:])


def _without_command(words: list[str]) -> int | None:
    try:
        arguments = parse(words, "kes", FLAGS)
        arguments.at_most(0)
    except HelpWanted:
        arguments = None
    if arguments is not None and arguments.has("version"):
        from keswick.about import version_lines

        print("\n".join(version_lines()))
    elif arguments is not None and arguments.has("update"):
        return run("update", import_module("keswick.cli.update").COMMAND, [])
    elif arguments is not None and arguments.has("auto-completion"):
        from keswick.cli.completion import install

        install()
    else:
        from keswick.cli.connection import ENVIRONMENT, ENVIRONMENT_DETAILS

        raise HelpWanted(root_help(COMMANDS, FLAGS, ENVIRONMENT, _EXAMPLES, ENVIRONMENT_DETAILS))
    return None


def _fail(message: str) -> int:
    from keswick.cli.terminal import has_colour, printable

    label = "\x1b[31mError: \x1b[0m" if has_colour(sys.stderr) else "Error: "
    text = printable(message)
    if len(text) > 4000:  # somebody gave a file for a name, say; what is wrong stands at the ends
        text = f"{text[:2000]} … {text[-1000:]}"
    _tell(f"{label}{text}\n")
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
