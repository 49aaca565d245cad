"""The tour in README.md, walked as it stands there, beside a server like that of `make run`."""

import json
import re
import subprocess
import sys
from pathlib import Path

from keswick.identity import APIKey
from support.cli import clean_environment, kes
from support.server import RunningServer, running

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Walker:
    """Somebody who types what they read into a shell, in a folder that looks like the project's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = clean_environment()
        activate, kes_ = folder / ".venv" / "bin" / "activate", folder / "bin" / "kes"
        activate.parent.mkdir(parents=True)
        activate.write_text(f'PATH="{kes_.parent}:$PATH"\n')
        kes_.parent.mkdir()
        kes_.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m keswick "$@"\n')
        kes_.chmod(0o755)

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


def test_the_tour(tmp_path: Path) -> None:
    walker = Walker(tmp_path)
    run = tmp_path / "run"
    assert kes("init", str(run)).code == 0
    api_key = APIKey.parse((run / "admin.apikey").read_text().strip())
    with running(["server", "--config", str(run / "config.yaml"), "--addr", "127.0.0.1:0"], run, api_key) as server:
        steps = walk(walker, server)

    (opened,) = (printed for lines, printed in steps if "key decrypt" in lines)
    assert opened == '{"plaintext":"aGVsbG8="}'
    (answered,) = (printed for lines, printed in steps if "curl" in lines)
    assert json.loads(answered).keys() == {"plaintext", "ciphertext"}


def walk(walker: Walker, server: RunningServer) -> list[tuple[str, str]]:
    """What was typed, and what was printed then."""
    tour = README.read_text().partition("\n## A tour")[2].partition("\n## ")[0]
    tour = tour.replace("https://127.0.0.1:7373", server.endpoint)
    tour = tour.replace("<the number behind Process>", str(server.process.pid))
    steps: list[tuple[str, str]] = []
    for language, block in BLOCK.findall(tour):
        if language == "yaml":
            identity = steps[-1][1].split()[-1]
            text = block.replace("<the identity that was printed>", identity)
            server.config.write_text(f"{server.config.read_text()}\n{text}")
        else:
            assert language == "sh"
            steps.append((block, walker.type(block)))
            if "kill -HUP" in block:
                server.wait_for("SIGHUP signal completed")
    return steps
