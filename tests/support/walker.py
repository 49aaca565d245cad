"""Guides, walked as they stand there: their shell blocks are typed into a shell."""

import re
import subprocess
import sys
from pathlib import Path

from support.cli import clean_environment

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""A block of a page: its language, and its text."""


def section(page: Path, title: str) -> str:
    """What stands under that heading of the second level."""
    _, found, rest = page.read_text().partition(f"\n## {title}\n")
    assert found, f"{page.name} has no '{title}'"
    return rest.partition("\n## ")[0]


def shell_blocks(text: str) -> list[str]:
    return [block for language, block in BLOCK.findall(text) if language == "sh"]


class Walker:
    """Somebody who types what they read into a shell, in a folder that looks like the project's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = clean_environment()
        activate, programs = folder / ".venv" / "bin" / "activate", folder / "bin"
        activate.parent.mkdir(parents=True)
        activate.write_text(f'PATH="{programs}:$PATH"\n')
        programs.mkdir()
        self.add_program("kes", f'exec "{sys.executable}" -m keswick "$@"')

    def add_program(self, name: str, script: str) -> None:
        """A program of that name, beside `kes`: a script for sh."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def type(self, lines: str) -> str:
        """What is printed. What the lines export stays for the next ones. A command that fails ends the walk."""
        kept = self.folder / "environment"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f'{lines}\nenv -0 >"{kept}"'],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        self.environment = dict(pair.split("=", 1) for pair in kept.read_text().split("\0") if pair)
        return done.stdout
