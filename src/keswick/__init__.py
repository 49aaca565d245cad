"""Keswick, a key encryption server."""

__version__ = "0.1.0"
