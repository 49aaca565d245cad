"""The way of a request: path, route, method, caller, handler, reply; then it is counted and put on record.

`handle` is called on the I/O thread. Whatever can be answered at once is answered there, without a lock or an await;
what has to wait for the key store goes on as a task on the main thread, where asyncio lives.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar
from urllib.parse import quote

from keswick._native import Request, Stream
from keswick.encoding import rfc3339

from .authentication import authorize, caller_of
from .call import Answer, Call, Handler
from .logs import AuditLog, ErrorLog
from .metrics import Metrics, Recorder
from .replies import NOT_FOUND, ApiError, Reply, redirect
from .routes import ROUTES, UncleanPath, lacks_slash, resolve
from .state import State

T = TypeVar("T")

UNKNOWN_ROUTE = len(ROUTES)
"""The index under which requests without a route are counted."""


class Service:
    """What lives as long as the process, apart from any configuration: counters, logs, threads. `state` is the
    configuration in force."""

    routes = ROUTES

    def __init__(
        self, state: State, *, errors: ErrorLog, audit: AuditLog, metrics: Metrics, executor: Executor
    ) -> None:
        self.state = state
        self.errors = errors
        self.audit = audit
        self.metrics = metrics
        self.started = time.monotonic()
        self.started_at = rfc3339(time.time_ns())
        self.draining = False
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._main_recorder = metrics.recorder()
        self._io_recorder = metrics.recorder()

    # --- on the I/O thread ---

    def handle(self, request: Request) -> Reply | None:
        """Answer a request, or return None when the answer comes later."""
        return self.answer(request, self._walk, self._io_recorder)

    def answer(self, request: Request, walk: Handler, recorder: Recorder) -> Reply | None:
        """Answer a request with what `walk` makes of it, counted by the calling thread's recorder."""
        call = Call(self, self.state, request, time.perf_counter())
        recorder.started += 1
        try:
            answer = walk(call)
        except ApiError as error:
            answer = error.reply()
        except Exception as error:
            answer = self._crashed(call, error)
        if isinstance(answer, tuple):
            self._finish(recorder, call, answer[0])
            return answer
        if answer is None:  # a stream: its answer has begun
            self._finish(recorder, call, 200)
        else:
            self._loop.call_soon_threadsafe(self._start, call, answer)
        return None

    def _walk(self, call: Call) -> Answer:
        request = call.request
        try:
            route, call.path, call.resource = resolve(request.path)
        except UncleanPath as unclean:
            if unclean.clean is None:
                raise ApiError(400, "invalid request path") from None
            return _redirect(request, unclean.clean)
        if route is None:
            return _redirect(request, call.path + "/") if lacks_slash(call.path) else NOT_FOUND
        call.route = route
        method = request.method
        if method != route.method and not route.takes(method):
            raise ApiError(405, f"received method '{method}' expected '{route.method}'", headers=route.refusal)
        caller = caller_of(request.connection)
        call.identity = caller.identity
        authorize(call.state, route, call.path, caller)
        if self.audit.required and not self.audit.ready():
            raise ApiError(503, "audit log is not available")
        return route.handler(call)

    def _crashed(self, call: Call, error: Exception) -> Reply:
        """A fault of ours. Its kind and place are logged; its text is not, for it may hold what a client sent."""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        self.log_error(f"internal error: {type(error).__name__} at {place}", call)
        return ApiError(500, "internal server error").reply()

    def _finish(self, recorder: Recorder, call: Call, status: int) -> None:
        duration = time.perf_counter() - call.started
        route = call.route
        recorder.observe(route.index if route is not None else UNKNOWN_ROUTE, status, duration)
        if self.audit.active:
            peer = call.request.connection.peer
            self.audit.record(time.time_ns(), peer, call.path, call.identity, status, int(duration * 1e9))

    # --- on the main thread ---

    def _start(self, call: Call, answer: Awaitable[Reply | None]) -> None:
        task = self._loop.create_task(self._complete(call, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _complete(self, call: Call, answer: Awaitable[Reply | None]) -> None:
        seconds = call.state.timeouts[call.route.index] if call.route is not None else 0
        try:
            async with asyncio.timeout(seconds or None):
                reply = await answer
        except TimeoutError:
            reply = ApiError(503, "request timeout exceeded").reply()
        except ApiError as error:
            reply = error.reply()
        except Exception as error:
            reply = self._crashed(call, error)
        if reply is not None:
            call.request.respond(*reply)
        self._finish(self._main_recorder, call, reply[0] if reply is not None else 200)

    async def blocking(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a blocking call in the thread pool."""
        return await self._loop.run_in_executor(self._executor, function, *arguments)

    # --- from any thread ---

    def limit_stream(self, call: Call, stream: Stream) -> None:
        """End a stream at its route's time limit, if the configuration sets one."""
        seconds = call.state.timeouts[call.route.index] if call.route is not None else 0
        if seconds:
            self._loop.call_soon_threadsafe(self._loop.call_later, seconds, stream.close)

    def log_error(self, message: str, call: Call) -> None:
        self.errors.error(message, _attributes(call))


def _attributes(call: Call) -> Mapping[str, str]:
    request = call.request
    return {
        "req.method": request.method,
        "req.path": call.path,
        "req.ip": request.connection.peer,
        "req.identity": call.identity,
    }


def _redirect(request: Request, path: str) -> Reply:
    location = quote(path, safe="/~!$&'()*+,;=:@")
    if request.query:
        location += f"?{request.query}"
    return redirect(location, get=request.method == "GET")
