"""The tour in README.md, walked as it stands there, beside a server like that of `make run`."""

import json
from pathlib import Path

from keswick.identity import APIKey
from support.cli import kes
from support.server import RunningServer, running
from support.walker import BLOCK, Walker

README = Path(__file__).parents[2] / "README.md"


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
