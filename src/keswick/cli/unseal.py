"""`kes unseal`, which lives beside `kes seal`."""

from keswick.cli.seal import UNSEAL as COMMAND

__all__ = ["COMMAND"]
