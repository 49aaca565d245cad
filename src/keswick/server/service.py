"""The way of a request: path, route, method, caller, handler, reply; then it is counted and put on record.

`handle` is called on the I/O thread. Whatever can be answered at once is answered there, without a lock or an await;
what has to wait for the key store goes on as a task on the main thread, where asyncio lives.
"""

import asyncio
import time
from collections.abc import Awaitable
from functools import partial
from urllib.parse import quote

from keswick._native import Request
from keswick.server.authentication import authorize, identify
from keswick.server.call import Answer, Call, Handler
from keswick.server.dialects import DIALECTS
from keswick.server.faults import describe
from keswick.server.forwarded import client_address
from keswick.server.metrics import Recorder
from keswick.server.replies import INTERNAL_ERROR, ApiError, Reply, redirect
from keswick.server.routes import UNKNOWN, UncleanPath, handlers, lacking_slash, resolve
from keswick.server.runtime import Runtime
from keswick.server.state import State

_NO_AUDIT = ApiError(503, "audit log is not available").reply()


class Service:
    """`state` is the configuration in force, with what was written at run time; `adopt` puts another one in force."""

    def __init__(self, runtime: Runtime, state: State) -> None:
        self.runtime = runtime
        self._dialect = DIALECTS[state.config.dialect]
        self._handlers = handlers(self._dialect)
        self.adopt(state)
        runtime.access.changed = lambda: self.adopt(self.state)
        self._tasks: set[asyncio.Task[None]] = set()
        self._main_recorder = runtime.metrics.recorder()
        self.handle = partial(self.answer, self._walk, runtime.metrics.recorder())
        """What the listener calls for a request, on its I/O thread."""

    def adopt(self, state: State) -> None:
        """Put a configuration in force. For the main thread alone, as all that changes the state."""
        if not state.config.runtime_policies:
            self.runtime.access.clear()
        self.state = state.with_access(self.runtime.access)

    # --- on the I/O thread ---

    def answer(self, walk: Handler, recorder: Recorder, request: Request) -> Reply | None:
        """Answer a request with what `walk` makes of it, or return None when the answer comes later. `recorder` is the
        calling thread's."""
        recorder.started += 1
        audit = self.runtime.audit
        if audit.required and not audit.ready():
            # This answer is counted and not recorded: there is no room for it.
            recorder.observe(UNKNOWN, 503, 0.0)
            return _NO_AUDIT
        call = Call(self.runtime, self.state, request, UNKNOWN, time.perf_counter())
        try:
            answer = walk(call)
        except ApiError as error:
            answer = self._dialect.refuse(call, error)
        except Exception as error:
            answer = self._crashed(call, error)
        if isinstance(answer, tuple):
            self._finish(recorder, call, answer[0])
            return answer
        if answer is None:  # a stream: its answer has begun
            self._finish(recorder, call, 200)
        else:
            self.runtime.loop.call_soon_threadsafe(self._start, call, answer)
        return None

    def _walk(self, call: Call) -> Answer:
        request = call.request
        caller = identify(call)
        try:
            route, call.path, call.resource = resolve(request.path)
        except UncleanPath as unclean:
            call.path = unclean.path
            if unclean.clean is None:
                raise ApiError(400, "invalid request path") from None
            return self._redirect(request, unclean.clean)
        if route is None or (route.is_optional and not call.state.config.runtime_policies):
            return self._elsewhere(call)
        call.api = route.index
        method = request.method
        if method != route.method and not route.takes(method):
            raise ApiError(
                405,
                f"received method '{method}' expected '{route.method}'",
                headers=route.refusal,
                right_method=route.method,
            )
        try:
            authorize(call.state, route, call.path, caller)
        except ApiError as refusal:
            call.log_debug(f"access denied: {refusal.message}")
            raise
        return self._handlers[route.index](call)

    def _elsewhere(self, call: Call) -> Reply:
        """The answer to a path that no route has that is served."""
        route = lacking_slash(call.path)
        if route is None or (route.is_optional and not call.state.config.runtime_policies):
            return self._dialect.unknown
        return self._redirect(call.request, route.path)

    def _redirect(self, request: Request, path: str) -> Reply:
        location = quote(path, safe="/~!$&'()*+,;=:@")
        if request.query:
            location += "?" + quote(request.query, safe="/~!$&'()*+,;=:@?%")
        return redirect(location, self._dialect.redirect, get=request.method == "GET")

    def _crashed(self, call: Call, error: Exception) -> Reply:
        call.log_error(describe(error))
        return INTERNAL_ERROR

    def _finish(self, recorder: Recorder, call: Call, status: int) -> None:
        duration = time.perf_counter() - call.started
        recorder.observe(call.api, status, duration)
        audit = self.runtime.audit
        if audit.active:
            request = call.request
            ip = (client_address(request) if call.via else None) or request.connection.peer
            audit.record(time.time_ns(), ip, call.path, call.identity, status, int(duration * 1e9), call.via)

    # --- on the main thread ---

    def _start(self, call: Call, answer: Awaitable[Reply | None]) -> None:
        task = self.runtime.loop.create_task(self._complete(call, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _complete(self, call: Call, answer: Awaitable[Reply | None]) -> None:
        try:
            async with asyncio.timeout(call.timeout or None):
                reply = await answer
        except TimeoutError:
            reply = self._dialect.timeout
        except ApiError as error:
            reply = self._dialect.refuse(call, error)
        except Exception as error:
            reply = self._crashed(call, error)
        # On record before it is answered, as on the I/O thread: what a client does next comes later in the log.
        self._finish(self._main_recorder, call, reply[0] if reply is not None else 200)
        if reply is not None:
            call.request.respond(*reply)
