"""`kes update`: how to get another version. The original replaces its own file; here that is what pip is for."""

import shlex
import sys

from keswick.cli.command import Arguments, Command, Flag


def update(arguments: Arguments) -> None:
    arguments.at_most(1)
    version = "".join(arguments.words)
    wanted = f"version {version}" if version not in ("", "latest") else "the version you want"
    print(
        f"This program does not replace itself: pip does. In a checkout of the project, at {wanted}:\n\n"
        f"    {shlex.quote(sys.executable)} -m pip install --upgrade .\n\n"
        "Servers that run go on with what they have; start them again, one after the other."
    )


_IGNORED = "Accepted and ignored, a flag of the original."

COMMAND = Command(
    "[VERSION]",
    "Tell how to upgrade.",
    update,
    (
        Flag("insecure", _IGNORED, short="k"),
        Flag("downgrade", _IGNORED, short="d"),
        Flag("output", _IGNORED, short="o", value="FILE"),
        Flag("os", _IGNORED, value="NAME"),
        Flag("arch", _IGNORED, value="NAME"),
        Flag("minisign-key", _IGNORED, value="KEY"),
    ),
    examples=("kes update",),
)
