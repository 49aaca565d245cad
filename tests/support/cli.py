"""The command line as its users meet it: in a process of its own, through pipes or on a terminal."""

import fcntl
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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
