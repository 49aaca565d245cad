"""A progress bar for work that takes its time.

with Progress("Migrating keys", total) as progress:
    for name in names:
        migrate(name)
        progress.advance()
"""

import gc
import signal
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING

from keswick.cli.terminal import can_redraw, uninterrupted

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

APPEARS_AFTER = 0.5
"""Seconds. A bar that flashes up for less tells nobody anything."""


class Progress:
    """Shows how far the work is, on standard error, if that is a terminal and the work lasts; else it does nothing.

    `what` is being done, such as `Migrating keys`; `total` is the number of steps, None when nobody knows it. The bar
    is gone when the context ends, however it ends. Whoever prints lines meanwhile would print into the bar.
    """

    def __init__(self, what: str, total: int | None = None) -> None:
        self.done = 0
        self._what = what
        self._total = total
        self._bar: Bar | None = None
        # The bar comes up in time even if the first step hangs, so that this cannot be left to `advance`.
        self._timer = threading.Timer(APPEARS_AFTER, self._appear)
        self._timer.daemon = True
        self._ended = False
        self._changing = threading.Lock()

    def __enter__(self) -> "Progress":
        if can_redraw(sys.stderr):
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._timer.cancel()
        with uninterrupted(), self._changing:
            self._ended = True
            if self._bar is not None:
                self._bar.stop()

    def advance(self, steps: int = 1) -> None:
        """Tell that so many more steps are done."""
        self.done += steps
        if self._bar is not None:
            self._show()

    def _show(self) -> None:
        with self._changing:  # the number must not be older than the one that another thread shows
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self.done)

    def _appear(self) -> None:
        # An interrupt has to wake the thread that works, not this one or one that it starts.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        gc.enable()  # see main: this is what runs for long
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        class VisibleCursor(Console):
            """What stops (Ctrl-Z) or kills the command leaves the cursor as it is."""

            def show_cursor(self, show: bool = True) -> bool:
                return False

        known = self._total is not None
        bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(28),  # leaves room for the ^C that a terminal shows, which in the next line would stay
            TextColumn("{task.completed:,} of {task.total:,}" if known else "{task.completed:,}"),
            TimeRemainingColumn() if known else TimeElapsedColumn(),
            console=VisibleCursor(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with self._changing:
            if not self._ended:
                bar.add_task(self._what, total=self._total, completed=self.done)
                bar.start()
                self._bar = bar
        self._show()  # what was done meanwhile
