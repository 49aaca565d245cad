"""Log levels: `DEBUG INFO WARN ERROR`, each optionally `+N`, or a number, or `on` and `off`."""

import re

from keswick.config.model import Log

_NAMES = {"DEBUG": -4, "INFO": 0, "ON": 0, "WARN": 4, "ERROR": 8, "OFF": Log.OFF}
_NUMBER = re.compile(r"[-+]?[0-9]{1,9}")


def parse(text: str) -> int:
    """The level as a number. Raises ValueError with a sentence that says what to write, without `text`."""
    text = text.strip().upper()
    if text in _NAMES:
        return _NAMES[text]
    if _NUMBER.fullmatch(text):
        return min(int(text), Log.OFF)
    name, plus, number = text.partition("+")
    if plus and name in ("DEBUG", "INFO", "WARN", "ERROR") and re.fullmatch("[0-9]{1,9}", number):
        return min(_NAMES[name] + int(number), Log.OFF)
    raise ValueError(
        "this is not a log level; write 'on', 'off', 'debug', 'info', 'warn' or 'error', or such as 'info+2'"
    )
