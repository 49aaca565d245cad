"""Durations as the original writes them: decimal numbers with units in a row, such as `300s`, `1h30m` or `1.5h`."""

import re
from decimal import Decimal

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # micro sign
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_DURATION = re.compile(rf"[-+]?(?:{_TERM.pattern})+")
_NUMBER = re.compile(r"[-+]?[0-9]+")
_MOST = (1 << 63) - 1  # nanoseconds: 292 years


def parse(text: str) -> float:
    """Seconds. Raises ValueError with a sentence that says what to write; the sentence does not show `text`."""
    if not text:
        raise ValueError("a duration is missing, write for example '300s'")
    if _NUMBER.fullmatch(text):
        raise ValueError("a duration needs a unit, write for example '300s' or '5m'; to switch off, '0s'")
    if _DURATION.fullmatch(text) is None:
        raise ValueError("this is not a duration, write numbers with the units h, m, s, ms, us or ns, such as '1h30m'")
    nanoseconds = sum((Decimal(number) * _UNITS[unit] for number, unit in _TERM.findall(text)), Decimal(0))
    if nanoseconds > _MOST:
        raise ValueError("a duration cannot be longer than 292 years")
    seconds = float(nanoseconds / 1_000_000_000)
    return -seconds if text.startswith("-") else seconds


def format(seconds: float) -> str:
    """As the original prints it: `1h0m0s`, `1.5s`, `20ms`, `0s`; to the nanosecond."""
    nanoseconds = round(abs(seconds) * 1_000_000_000)
    sign = "-" if seconds < 0 and nanoseconds else ""
    if nanoseconds == 0:
        return "0s"
    for unit in ("ns", "µs", "ms"):
        if nanoseconds < 1_000 * _UNITS[unit]:
            return f"{sign}{_decimal(nanoseconds, _UNITS[unit])}{unit}"
    minutes, rest = divmod(nanoseconds, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest, _UNITS['s'])}s"
    if hours:
        return f"{sign}{hours}h{minutes}m{text}"
    return f"{sign}{minutes}m{text}" if minutes else f"{sign}{text}"


def _decimal(nanoseconds: int, unit: int) -> str:
    whole, rest = divmod(nanoseconds, unit)
    digits = f"{rest:0{len(str(unit)) - 1}d}".rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)
