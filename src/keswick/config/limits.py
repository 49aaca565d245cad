"""The bounds on what strangers can make grow, as far as a file may set them: which there are, and between what."""

from collections.abc import Mapping

from keswick._native import DEFAULT_LIMITS as DEFAULT_LIMITS

RANGES: Mapping[str, tuple[float, float]] = {
    "connections": (1, 1_000_000),
    "handshakes": (1, 100_000),
    "handshakes_per_address": (1, 100_000),
    "handshake_grace_seconds": (0.001, 600),
    "handshake_seconds": (0.1, 600),
    "header_bytes": (4 << 10, 1 << 20),
    "headers": (10, 1000),
    "header_seconds": (0.1, 600),
    "idle_seconds": (0.1, 86_400),
    "body_seconds": (0.1, 3600),
    "write_seconds": (0.1, 3600),
    "streams": (1, 10_000),
    "requests": (1, 1_000_000),
    "buffered_bytes": (4 << 20, 1 << 40),
    "drained_bytes": (1, 1 << 40),
}
"""The least and the most of each: with less a server would serve nobody, with more it would have no bound. Seconds,
bytes or counts."""


def is_duration(name: str) -> bool:
    return name.endswith("_seconds")
