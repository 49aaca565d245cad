"""Signals reach the loop, however much other threads tell it at the same time."""

import subprocess
import sys

from support.cli import clean_environment

PROGRAM = """
import asyncio, os, signal, threading
from keswick.server.signals import Signals

async def main():
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    Signals(loop).on(signal.SIGHUP, told.set)
    # What fills the loop's own pipe, before the loop can look at it.
    flood = threading.Thread(target=lambda: [loop.call_soon_threadsafe(int) for _ in range(5000)])
    flood.start()
    flood.join()
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.wait_for(told.wait(), 20)
    told.clear()
    # And one that comes while the loop has nothing to do, on whatever thread.
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGHUP)).start()
    await asyncio.wait_for(told.wait(), 20)

asyncio.run(main())
print("both came")
"""


def test_no_signal_is_lost_in_a_flood() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env=clean_environment(),
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("both came\n", "")
