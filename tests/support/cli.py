"""The command line as its users meet it: in a process of its own, through pipes or on a terminal."""

import copy
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyte

from support.server import SOURCES

COMMAND = [sys.executable, "-m", "keswick"]


class Result(NamedTuple):
    code: int
    stdout: str
    stderr: str


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of this process without any setting of a client or of Python, and with `extra`."""
    ours = ("KES_", "MINIO_", "SSL_CERT", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": SOURCES, "TERM": "xterm", **(extra or {})}


def kes(*arguments: str | bytes, env: Mapping[str, str] | None = None, stdin: bytes = b"") -> Result:
    """Run `kes` through pipes."""
    done = subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, env=clean_environment(env), timeout=60, check=False
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def kes_on_terminal(
    *arguments: str, env: Mapping[str, str] | None = None, answers: Sequence[tuple[str, str]] = ()
) -> tuple[int, str]:
    """Run `kes` on a terminal. `answers`: prompts and what is typed then. The exit code and what is shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=clean_environment(env),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    shown, waiting = b"", list(answers)
    try:
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # how a terminal tells that nobody is there any more
                break
            if not piece:
                break
            shown += piece
            if waiting and shown.decode(errors="replace").rstrip().endswith(waiting[0][0]):
                os.write(ours, waiting.pop(0)[1].encode() + b"\n")
        return process.wait(60), shown.decode().replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@contextmanager
def kes_in_background(*arguments: str, env: Mapping[str, str] | None = None) -> "Iterator[subprocess.Popen[str]]":
    """`kes` with pipes for its output, while it runs; killed in the end if it still does."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(env),
        preexec_fn=_heed_interrupts,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


_ALTERNATE_SCREEN = 1049


class _Screen(pyte.Screen):
    """With the alternate screen, which pyte does not have."""

    main: tuple[Any, Any] | None = None
    """What the main screen shows while it is not seen, and its cursor."""

    def set_mode(self, *modes: int, **options: Any) -> None:
        if _ALTERNATE_SCREEN in modes and self.main is None:
            self.main = copy.deepcopy(self.buffer), copy.copy(self.cursor)
            self.erase_in_display(2)
        super().set_mode(*modes, **options)

    def reset_mode(self, *modes: int, **options: Any) -> None:
        super().reset_mode(*modes, **options)
        if _ALTERNATE_SCREEN in modes and self.main is not None:
            hidden = self.cursor.hidden
            (self.buffer, self.cursor), self.main = self.main, None
            self.cursor.hidden = hidden
            self.dirty.update(range(self.lines))


class Terminal:
    """`kes`, or another `command`, on a terminal of that size, while it runs.

    with Terminal("log", env=server.environment) as terminal:
        terminal.wait_for("Latency")
        terminal.press_ctrl_c()
        assert terminal.wait() == 1
    """

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        size: tuple[int, int] = (80, 24),
        command: Sequence[str] = COMMAND,
    ) -> None:
        """`size`: columns and lines."""
        self._ours, theirs = pty.openpty()
        self._screen = _Screen(*size)
        self._stream = pyte.ByteStream(self._screen)
        self.output = b""
        """All that was written, as it was written."""
        self.resize(*size)
        environment = clean_environment(env)
        for name in ("COLUMNS", "LINES"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    @property
    def lines(self) -> list[str]:
        """What the screen shows, without what is empty at the end of a line."""
        return [line.rstrip() for line in self._screen.display]

    @property
    def shown(self) -> str:
        return "\n".join(self.lines).rstrip()

    @property
    def is_clean(self) -> bool:
        """Whether the cursor can be seen, at the beginning of a line, on the screen that the command was called on."""
        return not self._screen.cursor.hidden and self._screen.cursor.x == 0 and not self.has_own_screen

    @property
    def shows_cursor(self) -> bool:
        return not self._screen.cursor.hidden

    @property
    def echoes(self) -> bool:
        """Whether what is typed is shown."""
        return bool(termios.tcgetattr(self._ours)[3] & termios.ECHO)

    def has_stopped(self) -> bool:
        """Whether the command has stopped since this was asked last, as after Ctrl-Z; `fg` is SIGCONT."""
        return os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG) is not None

    @property
    def has_own_screen(self) -> bool:
        """Whether the command draws on the alternate screen, which a terminal drops when it ends."""
        return self._screen.main is not None

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen.resize(lines, columns)

    def press(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def press_ctrl_c(self) -> None:
        self.press(b"\x03")

    def wait_for(self, condition: str | Callable[[], bool], *, seconds: float = 20.0) -> None:
        """Until the screen shows the text, or the condition holds."""
        deadline = time.monotonic() + seconds
        while not (condition in self.shown if isinstance(condition, str) else condition()):
            if time.monotonic() > deadline or not self._read(0.1):
                raise AssertionError(f"{condition!r} did not come:\n{self.shown}\n{self.output[-500:]!r}")

    def wait(self, seconds: float = 20.0) -> int:
        """Until the command ends; its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(0.1):
            if time.monotonic() > deadline:
                raise AssertionError(f"the command did not end:\n{self.shown}")
        return self.process.wait(seconds)

    def _read(self, seconds: float) -> bool:
        """Take in what is written; False when nobody is there any more."""
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self._ours, 65536)
        except OSError:  # how a terminal tells that
            return False
        self.output += piece
        self._stream.feed(piece)
        return bool(piece)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as a shell starts a command, whatever the tests were started by


def _take_terminal() -> None:
    _heed_interrupts()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
