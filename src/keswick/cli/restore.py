"""`kes restore`, which lives beside `kes backup`."""

from keswick.cli.backup import RESTORE as COMMAND

__all__ = ["COMMAND"]
