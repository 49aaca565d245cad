"""Signals, told to the main thread's loop so that a busy loop cannot lose one.

asyncio's own handlers share a pipe with all that other threads tell the loop. Under load that pipe is full for moments,
and a signal of such a moment is dropped: a server would not stop when it is told to. Here signals have a pipe of their
own, which only wakes the loop; what they mean is handed over by the interpreter, which forgets none.
"""

import asyncio
import signal
import socket
from collections.abc import Callable


class Signals:
    """For the main thread, while its loop runs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)
        loop.add_reader(self._reader, self._reader.recv, 4096)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)

    def on(self, number: int, action: Callable[[], object]) -> None:
        """Have the loop run `action` for each signal; several at once may count as one."""
        signal.signal(number, lambda *_: self._loop.call_soon_threadsafe(action))
