"""What lives as long as the process, apart from any configuration: logs, counters, threads, the main thread's loop."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from keswick.encoding import rfc3339
from keswick.server.access import RunTimeAccess
from keswick.server.logs import AuditLog, ErrorLog
from keswick.server.metrics import Metrics

T = TypeVar("T")


class Runtime:
    """`loop` is the main thread's; whoever makes a Runtime does so there. `started` counts from an arbitrary moment,
    `started_at` is a time for people. `draining`: the server was told to stop. `access`: what was written at run time.
    """

    def __init__(self, *, errors: ErrorLog, audit: AuditLog, metrics: Metrics, executor: Executor) -> None:
        self.errors = errors
        self.audit = audit
        self.metrics = metrics
        self.loop = asyncio.get_running_loop()
        self.started = time.monotonic()
        self.started_at = rfc3339(time.time_ns())
        self.draining = False
        self.access = RunTimeAccess()
        self._executor = executor

    async def blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a blocking call, such as one of the key store, in the thread pool."""
        return await self.loop.run_in_executor(self._executor, function, *arguments)
