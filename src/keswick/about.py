"""What this program and the machine below it are called: for `kes --version`, the banner, and the API."""

import os
import sys

import keswick

COMMIT = "<unknown>"
"""Of the source. A package does not know it; the original says the same of a build without it."""

LICENSE = "Apache-2.0"

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "i386": "386"}


def operating_system() -> str:
    return os.uname().sysname.lower()


def architecture() -> str:
    """The machine's, in the words that clients know."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def version_lines() -> list[str]:
    """Three lines: label, value and what belongs to it, in columns."""
    python = ".".join(map(str, sys.version_info[:3]))
    rows = (
        ("Version", keswick.__version__, f"commit={COMMIT}"),
        ("Runtime", f"python{python} {operating_system()}/{architecture()}", sys.implementation.name),
        ("License", LICENSE, ""),
    )
    return [f"{label:<12}{value:<28}{more}".rstrip() for label, value, more in rows]
