"""What the server tells its operator. A reader that is slow, or has gone, neither holds the server up nor ends it."""

import os
import queue
import threading
from contextlib import suppress

STDOUT, STDERR = 1, 2


class Console:
    """Writes texts in order on a thread of its own."""

    def __init__(self) -> None:
        self._texts: queue.SimpleQueue[tuple[int, bytes] | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="console", daemon=True).start()

    def say(self, text: str, file: int = STDOUT) -> None:
        self._texts.put((file, text.encode(errors="replace") + b"\n"))

    def flush(self, seconds: float) -> None:
        """Wait until everything is written, at most so long."""
        written = threading.Event()
        self._texts.put(written)
        written.wait(seconds)

    def _write(self) -> None:
        while True:
            item = self._texts.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            file, data = item
            with suppress(OSError):
                while data:
                    data = data[os.write(file, data) :]
