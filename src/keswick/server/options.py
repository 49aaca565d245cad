"""What the command line says to `kes server`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """None is what was not said."""

    config: str | None = None
    address: str | None = None
    dev: bool = False
    check: bool = False
    key: str | None = None
    cert: str | None = None
    auth: str | None = None
    root: str | None = None
    mlock: bool = False
    """Do not start without locked memory; locking is always tried."""
    quiet: bool = False
    """Nothing but audit events on standard output."""
