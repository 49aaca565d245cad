"""What the two clients have in common: whom they call, who they are, and how long they wait."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import keswick
from keswick._native import HttpClient
from keswick.client import credentials
from keswick.client import environment as variables
from keswick.client.endpoint import DEFAULT_ENDPOINT, parse_all
from keswick.client.failover import Servers

if TYPE_CHECKING:
    from keswick.identity import APIKey


class BaseClient:
    """Raises ValueError or OSError when a setting, a credential or a file cannot be used."""

    def __init__(
        self,
        endpoints: str | Sequence[str] = DEFAULT_ENDPOINT,
        *,
        api_key: "APIKey | str | None" = None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        password: credentials.Password | None = None,
        ca_file: str | Path | None = None,
        verify: bool = True,
        timeout: float | None = 15.0,
        connect_timeout: float = 5.0,
        retries: int = 2,
        http2: bool = True,
    ) -> None:
        if retries < 0:
            raise ValueError("'retries' is how many more rounds there are, 0 or more")
        if connect_timeout <= 0 or (timeout is not None and timeout <= 0):
            raise ValueError("'timeout' and 'connect_timeout' are seconds, more than 0")
        self._servers = Servers(parse_all(endpoints), retries)
        self._timeout = timeout
        self._http = HttpClient(
            credentials.client_tls(
                api_key=api_key, cert=cert, key=key, password=password, ca_file=ca_file, verify=verify
            ),
            connect_timeout=connect_timeout,
            http2=http2,
            user_agent=f"keswick/{keswick.__version__}",
        )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, **overrides: Any) -> Self:
        """A client as the environment variables say that the command line reads, such as KES_SERVER, KES_API_KEY and
        KES_CA_FILE (docs/cli.md lists them all). `overrides`: arguments that win over them; a credential among them
        replaces whatever credential the variables have.

        >>> with Client.from_environment(timeout=5) as client:
        ...     client.ready()
        """
        settings = variables.read(environment)._asdict()
        if not overrides.keys().isdisjoint(("api_key", "cert", "key")):
            settings |= {"api_key": None, "cert": None, "key": None}
        return cls(**({name: value for name, value in settings.items() if value is not None} | overrides))

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the servers are; the one that calls begin with comes first."""
        return tuple(map(str, self._servers.endpoints))

    def _time_left(self) -> Iterator[float | None]:
        """Again and again, how many seconds are left of `timeout`, which begins now."""
        end = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            yield None if end is None else max(0.0, end - time.monotonic())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self.endpoints)})"
