"""What keeps a server from starting, or a client from being served, and why.

`configured` looks at a configuration and at what it names, without starting anything; `running` calls servers as a
client does. Both are lists of checks: what one finds hides nothing that another would find. Nothing secret is in a
finding.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from keswick.config import ConfigError
from keswick.keystore import KeyStoreError

OK, WARNING, FAILED = "ok", "warning", "FAILED"


class Finding(NamedTuple):
    result: str
    """OK, WARNING or FAILED."""
    text: str
    """What was found, and unless it is as it should be, what to do."""
    check: str = ""
    """What was looked at, such as `tls certificate`."""


def ok(text: str) -> Finding:
    return Finding(OK, text)


def warning(text: str) -> Finding:
    return Finding(WARNING, text)


def failed(text: str) -> Finding:
    return Finding(FAILED, text)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.{1 if seconds > 1e-3 else 3}f} ms"


class Check(NamedTuple):
    name: str
    run: Callable[[], Iterable[Finding]]
    """May raise ConfigError, KeyStoreError, OSError and what a client raises: that it failed, in words."""


def examine(checks: Iterable[Check]) -> Iterator[Finding]:
    """Run one check after the other, and name their findings."""
    for check in checks:
        for finding in _findings(check):
            yield finding._replace(check=check.name)


def _findings(check: Check) -> Iterator[Finding]:
    from keswick.client import APIError
    from keswick.server.faults import describe

    try:
        yield from check.run()
    except (ConfigError, KeyStoreError, APIError, ConnectionError, ValueError) as error:
        yield failed(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        yield failed(where + (error.strerror or str(error)))
    except Exception as error:
        yield failed(f"it could not be checked: {describe(error)}")
