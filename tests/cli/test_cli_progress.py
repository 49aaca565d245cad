"""Progress bars, on terminals and where there is none. The work goes on when the test writes into a pipe."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.cli import Terminal, clean_environment

SCRIPT = """
import sys
from keswick.cli import progress

progress.APPEARS_AFTER = float(sys.argv[1])
total = int(sys.argv[2]) or None
try:
    with open(sys.argv[3]) as steps, progress.Progress("Making [b]keys", total) as work:
        for step in steps:
            if step == "fail\\n":
                raise ValueError("it failed")
            work.advance(int(step))
except KeyboardInterrupt:
    sys.exit(1)
except ValueError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
print("done, with rich" if "rich" in sys.modules else "done")
"""
AT_ONCE, NEVER = "0", "3600"


class Work:
    """The writing end of the pipe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    def command(self, appears_after: str = AT_ONCE, total: int = 0) -> list[str]:
        return [sys.executable, "-c", SCRIPT, appears_after, str(total), str(self.path)]

    def begin(self) -> None:
        self.pipe = self.path.open("w", buffering=1)

    def step(self, count: int | str) -> None:
        self.pipe.write(f"{count}\n")

    def end(self) -> None:
        self.pipe.close()


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path / "steps")


def test_a_bar_shows_how_far_the_work_is_and_goes_away(work: Work) -> None:
    with Terminal(command=work.command(total=1500)) as terminal:
        work.begin()
        terminal.wait_for("Making [b]keys")
        terminal.wait_for("0 of 1,500")
        work.step(1)
        terminal.wait_for(" 1 of 1,500")
        work.step(1200)
        terminal.wait_for("1,201 of 1,500")
        assert len(terminal.shown.splitlines()) == 1
        work.end()
        assert terminal.wait() == 0
        assert terminal.shown == "done, with rich"
        assert terminal.is_clean


def test_a_bar_for_nobody_knows_how_much_work(work: Work) -> None:
    with Terminal(command=work.command()) as terminal:
        work.begin()
        work.step(7)
        terminal.wait_for(" 7 ")
        assert " of " not in terminal.shown
        work.end()
        assert terminal.wait() == 0
        assert terminal.shown == "done, with rich"


def test_an_interrupt_leaves_the_terminal_clean(work: Work) -> None:
    with Terminal(command=work.command(total=10)) as terminal:
        work.begin()
        terminal.wait_for("0 of 10")
        terminal.press_ctrl_c()
        assert terminal.wait() == 1
        assert "Making" not in terminal.shown
        assert terminal.is_clean
        work.end()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGTERM])
def test_what_stops_or_kills_the_command_leaves_the_cursor(work: Work, number: signal.Signals) -> None:
    with Terminal(command=work.command(total=10)) as terminal:
        work.begin()
        terminal.wait_for("0 of 10")
        terminal.process.send_signal(number)
        terminal.wait_for(terminal.has_stopped if number == signal.SIGSTOP else lambda: terminal.wait() != 0)
        assert terminal.shows_cursor
        work.end()


def test_an_error_leaves_the_terminal_clean(work: Work) -> None:
    with Terminal(command=work.command(total=10)) as terminal:
        work.begin()
        terminal.wait_for("0 of 10")
        work.step("fail")
        assert terminal.wait() == 2
        assert terminal.shown == "it failed"
        assert terminal.is_clean
        work.end()


def test_short_work_shows_nothing(work: Work) -> None:
    with Terminal(command=work.command(NEVER, total=3)) as terminal:
        work.begin()
        for _ in range(3):
            work.step(1)
        work.end()
        assert terminal.wait() == 0
        assert terminal.output == b"done\r\n"


def test_a_terminal_that_cannot_be_redrawn_gets_nothing(work: Work) -> None:
    with Terminal(command=work.command(total=3), env={"TERM": "dumb"}) as terminal:
        work.begin()
        work.step(3)
        work.end()
        assert terminal.wait() == 0
        assert terminal.output == b"done\r\n"


def test_without_a_terminal_there_is_nothing(work: Work) -> None:
    process = subprocess.Popen(
        work.command(total=3), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment()
    )
    work.begin()
    work.step(3)
    work.end()
    assert process.communicate(timeout=60) == (b"done\n", b"")


def test_the_bar_is_on_standard_error_when_the_output_goes_into_a_file(work: Work, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with Terminal(command=["sh", "-c", 'exec "$@" >"$0"', str(output), *work.command(total=3)]) as terminal:
        work.begin()
        terminal.wait_for("0 of 3")
        work.end()
        assert terminal.wait() == 0
        assert terminal.shown == ""
        assert output.read_text() == "done, with rich\n"
