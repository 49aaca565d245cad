"""`kes doctor`: why a server does not start, or does not serve."""

import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from keswick.cli.command import Arguments, Command, CommandError, Flag
from keswick.cli.output import GREEN, JSON, RED, YELLOW, styled
from keswick.cli.terminal import ask_password, has_colour, printable, to_json

if TYPE_CHECKING:
    from keswick.doctor import Check

_COLOURS = {"ok": GREEN, "warning": YELLOW, "FAILED": RED}
_WIDTH = max(map(len, _COLOURS))


def doctor(arguments: Arguments) -> int:
    arguments.at_most(0)
    from keswick.doctor import FAILED, WARNING, examine

    colour = has_colour(sys.stdout)
    found = []
    for finding in examine(_checks(arguments)):
        found.append(finding)
        if not arguments.has("json"):
            result = styled(f"{finding.result:<{_WIDTH}}", _COLOURS[finding.result], colour)
            print(f"{result} {finding.check}: {printable(finding.text)}", flush=True)
    failures, warnings = (sum(finding.result == result for finding in found) for result in (FAILED, WARNING))
    if arguments.has("json"):
        findings = [{"check": finding.check, "result": finding.result, "text": finding.text} for finding in found]
        print(to_json({"ok": not failures, "failures": failures, "warnings": warnings, "findings": findings}))
    return 1 if failures else 0


def _checks(arguments: Arguments) -> "Iterator[Check]":
    file, path = arguments.value("config"), arguments.value("path")
    if file is not None:
        from keswick.doctor import configured

        identity, write = arguments.value("identity"), arguments.has("write")
        return configured.checks(file, identity=identity, path=path, write=write)
    for flag in ("identity", "write"):
        if arguments.has(flag):
            arguments.fail(f"'--{flag}' needs '--config FILE'")
    from keswick.doctor import running

    return running.checks(os.environ, path=path, password=_password)


@cache
def _password() -> str:
    try:
        return ask_password("Enter password for private key: ")
    except CommandError as error:  # a finding like any other
        raise ValueError(str(error)) from None


COMMAND = Command(
    "",
    "Find out why a server does not start, or does not serve.",
    doctor,
    (
        Flag("config", "Check this configuration and all that it names; without it, running servers.", value="FILE"),
        Flag("path", "Whether this path of the API may be called, and by which rule.", value="PATH"),
        Flag("identity", "With '--config': what this identity may do, and by which rules.", value="IDENTITY"),
        Flag("write", "With '--config': create a key of a random name and delete it again, as a test."),
        JSON,
    ),
    details="With '--config', run it on the server's machine as the server's user. Without, it calls the servers that\n"
    "the environment names, as the client that the environment names. The exit code is 1 if anything FAILED.",
    examples=(
        "kes doctor",
        "kes doctor --config config.yaml",
        "kes doctor --config config.yaml --write --json",
        "kes doctor --path /v1/key/generate/my-key",
    ),
)
