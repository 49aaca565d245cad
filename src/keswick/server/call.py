"""One request on its way: what the steps before a handler found out, and what a handler may ask for."""

from collections.abc import Awaitable, Callable

from keswick._native import Request, Stream
from keswick.crypto import KeyFormatError, SecretKey
from keswick.keystore import KeyNotFound, KeyStoreError
from keswick.names import is_name, is_stored_name
from keswick.server.logs import DEBUG
from keswick.server.replies import ApiError, Reply
from keswick.server.runtime import Runtime
from keswick.server.state import State

Answer = Reply | Awaitable[Reply | None] | None
"""What a handler returns: a reply at once, a coroutine that the main thread runs to get one, or None when it has
answered through the request itself, as streams do."""

Handler = Callable[["Call"], Answer]


class Call:
    """A request that passed routing and authentication.

    `path`: decoded; route, policy and audit log see this one. `resource`: what follows the route's prefix. `api`: the
    index of the route. `identity`: of the caller, empty when it has none. `via`: of the TLS proxy that the request
    came through. `state`: the configuration it began with and keeps to.
    """

    __slots__ = ("api", "identity", "path", "request", "resource", "runtime", "started", "state", "via")

    def __init__(self, runtime: Runtime, state: State, request: Request, api: int, started: float) -> None:
        self.runtime = runtime
        self.state = state
        self.request = request
        self.api = api
        self.started = started
        self.path = ""
        self.resource = ""
        self.identity = ""
        self.via = ""

    @property
    def timeout(self) -> float:
        """Seconds that an answer may take; 0 for any time."""
        return self.state.timeouts[self.api]

    def new_key_name(self) -> str:
        """The resource as the name of a key to be made. Raises ApiError 400."""
        if is_name(self.resource):
            return self.resource
        raise self._bad_key_name()

    def key_name(self) -> str:
        """The resource as the name of a key that may be there, which releases before 2022 named freely. Raises ApiError
        400."""
        if is_name(self.resource) or is_stored_name(self.resource):
            return self.resource
        raise self._bad_key_name()

    def key(self) -> SecretKey | None:
        """The key that the resource names, if it is cached. Raises ApiError 400 when no key can have that name."""
        key = self.state.cache.get(self.resource)
        if key is None:
            self.key_name()
        return key

    def with_key(self, key: SecretKey | None, operate: Callable[[SecretKey], Reply]) -> Answer:
        """Answer with what `operate` makes of `key()`: at once when it was cached, else when the store has sent it."""
        return operate(key) if key is not None else self._fetch(self.resource, operate)

    async def _fetch(self, name: str, operate: Callable[[SecretKey], Reply]) -> Reply:
        try:
            key = await self.state.cache.fetch(name)
        except KeyNotFound:
            raise self.key_not_found(name) from None
        except (KeyStoreError, KeyFormatError) as error:
            raise self.failed("failed to read key", error) from error
        return operate(key)

    def key_not_found(self, name: str) -> ApiError:
        """A name of the old kind that no key has is a bad name today."""
        is_known = is_name(name) or self.state.names_are_free
        return ApiError(404, "key does not exist") if is_known else self._bad_key_name()

    def failed(self, message: str, error: Exception) -> ApiError:
        """The key store failed: the details are for the error log alone."""
        self.log_error(f"{message}: {error}")
        return ApiError(502, message)

    def log_error(self, message: str) -> None:
        self.runtime.errors.error(message, self._attributes())

    def log_debug(self, message: str) -> None:
        if self.runtime.errors.level <= DEBUG:
            self.runtime.errors.debug(message, self._attributes())

    def _attributes(self) -> dict[str, str]:
        return {
            "req.method": self.request.method,
            "req.path": self.path,
            "req.ip": self.request.connection.peer,
            "req.identity": self.identity,
            "req.via": self.via,
        }

    def end_in_time(self, stream: Stream) -> None:
        """End a stream at the route's time limit, if it has one."""
        if self.timeout:
            loop = self.runtime.loop
            loop.call_soon_threadsafe(loop.call_later, self.timeout, stream.close)

    def _bad_key_name(self) -> ApiError:
        return ApiError(400, f"key name '{self.resource}' is empty, too long or contains invalid characters")
