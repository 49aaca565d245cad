"""What commands share to write for people."""

import os
import pty
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from keswick.cli.terminal import can_redraw, fit, has_colour, printable, short_duration, size, uninterrupted, uptime
from support.cli import Terminal


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        yield stream
    os.close(ours)


@pytest.mark.parametrize(
    ("variables", "redraw", "colour"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": ""}, False, False),
        ({}, False, False),
    ],
)
def test_what_a_terminal_can_do(
    terminal: TextIO, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], redraw: bool, colour: bool
) -> None:
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (can_redraw(terminal), has_colour(terminal)) == (redraw, colour)
    with open(os.devnull, "w") as other:
        assert not can_redraw(other)
    assert not can_redraw(None)


@settings(deadline=None)
@given(st.text())
def test_printable_text_is_one_line_that_moves_no_cursor(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    if text.isprintable():
        assert shown == text


def test_what_is_not_printable_is_spelled_out() -> None:
    assert printable("a\x1b[31m\n\x9b\u202e\udcffé") == r"a\x1b[31m\n\x9b\u202e\udcffé"


@settings(deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z", "M"])), st.integers(2, 40))
def test_a_cell_has_exactly_its_width(text: str, width: int) -> None:
    cell = fit(text, width)
    assert cell_len(cell) == width
    if cell_len(text) <= width:
        assert cell.rstrip(" ") == text


def test_what_does_not_fit_is_cut() -> None:
    assert fit("seven", 7) == "seven  "
    assert fit("exactly", 7) == "exactly"
    assert fit("too long", 7) == "too lo…"
    assert fit("鍵鍵鍵鍵", 7) == "鍵鍵鍵…"
    assert fit("鍵鍵鍵鍵", 6) == "鍵鍵 …"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (25e-9, "25ns"),
        (250e-6, "250µs"),
        (0.0015, "1.5ms"),
        (0.002, "2ms"),
        (0.0123, "12ms"),
        (1, "1s"),
        (3.14, "3.1s"),
        (59.6, "60s"),
        (125.2, "2m5s"),
    ],
)
def test_short_durations(seconds: float, text: str) -> None:
    assert short_duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds"),
        (1.5, "1 second"),
        (60, "60 seconds"),
        (61, "1 minute"),
        (3599, "59 minutes"),
        (3600, "1 hour"),
        (86400, "24 hours"),
        (90000, "1 day 1 hour"),
        (1_000_000, "11 days 13 hours"),
    ],
)
def test_uptimes(seconds: float, text: str) -> None:
    assert uptime(seconds) == text


@settings(deadline=None)
@given(st.floats(0, 1e18))
def test_a_size_has_few_digits(count: float) -> None:
    assert re.fullmatch(r"\d{1,3}B|\d{1,4}\.\d[KMG]B|\d+\.\dTB", size(count))


def test_sizes() -> None:
    assert [size(count) for count in (0, 999, 1000, 589_824, 4_616_840, 3e12)] == [
        "0B",
        "999B",
        "1.0KB",
        "589.8KB",
        "4.6MB",
        "3.0TB",
    ]


@pytest.fixture
def handler() -> Iterator[Callable[[Any], object]]:
    """Sets what an interrupt does, until the end of the test."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_what_must_not_be_interrupted(handler: Callable[[Any], object]) -> None:
    happened = []
    handler(lambda *_: happened.append("interrupt"))
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
        happened.append("work")
    signal.raise_signal(signal.SIGINT)
    assert happened == ["work", "interrupt", "interrupt"]


def test_who_ignores_interrupts_goes_on_ignoring_them(handler: Callable[[Any], object]) -> None:
    handler(signal.SIG_IGN)
    with uninterrupted():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


# --- a password ---

ASK = [sys.executable, "-c", "from keswick.cli import terminal; print(terminal.ask_password('Password: '))"]


def test_a_password_is_not_shown() -> None:
    with Terminal(command=ASK) as terminal:
        terminal.wait_for(lambda: terminal.shown == "Password:" and not terminal.echoes)
        terminal.press("open sesame, Zoë\n".encode())
        assert terminal.wait() == 0
        assert terminal.echoes
        assert terminal.shown == "Password:\nopen sesame, Zoë"  # which the test prints


def test_who_stopped_the_command_at_the_prompt_is_asked_again_and_nothing_is_shown() -> None:
    with Terminal(command=ASK) as terminal:
        terminal.wait_for(lambda: terminal.shown == "Password:" and not terminal.echoes)
        terminal.press(b"open\x1a")
        terminal.wait_for(lambda: terminal.has_stopped() and terminal.echoes)
        terminal.process.send_signal(signal.SIGCONT)
        terminal.wait_for(lambda: terminal.shown == "Password:\nPassword:" and not terminal.echoes)
        terminal.press(b"sesame\n")
        assert terminal.wait() == 0
        assert terminal.shown == "Password:\nPassword:\nsesame"


@pytest.mark.parametrize("key", [b"\x03", b"\x1c", b"\x04", b"\xff\n"], ids=["Ctrl-C", "Ctrl-\\", "Ctrl-D", "no UTF-8"])
def test_whatever_ends_the_prompt_leaves_the_terminal_clean(key: bytes) -> None:
    with Terminal(command=ASK) as terminal:
        terminal.wait_for(lambda: terminal.shown == "Password:" and not terminal.echoes)
        terminal.press(key)
        assert terminal.wait() != 0
        assert terminal.echoes
        assert terminal.is_clean
        assert terminal.output.startswith(b"Password: \r\n")


def test_the_prompt_is_on_the_terminal_wherever_the_streams_lead() -> None:
    with Terminal(command=["sh", "-c", '"$@" </dev/null >/dev/null 2>&1', "sh", *ASK]) as terminal:
        terminal.wait_for(lambda: terminal.shown == "Password:" and not terminal.echoes)
        terminal.press(b"open sesame\n")
        assert terminal.wait() == 0
        assert terminal.shown == "Password:"
