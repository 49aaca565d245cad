"""What names are made of: keys, policies, identities, and the patterns that lists take."""

import re

_NAME = re.compile(r"(?!-|_\Z)[0-9A-Za-z_-]{1,80}(?<!-)").fullmatch
_PATTERN = re.compile(r"(?!-|_\Z)(?:[0-9A-Za-z_-]{0,79}\*|[0-9A-Za-z_-]{0,80}(?<!-))").fullmatch
_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[^/\\\0]{1,255}").fullmatch
_SEGMENT_BYTES = 255

NAME_RULE = "1 to 80 of the characters A-Z a-z 0-9 - _, neither '-' first or last nor '_' alone"


def is_name(text: str) -> bool:
    """Whether `text` may name a new key, a policy or an identity: the rule of the releases since October 2023."""
    return _NAME(text) is not None


def is_pattern(text: str) -> bool:
    """Whether `text` may select names in a list: as a name, but it may be empty and may end in `*`."""
    return _PATTERN(text) is not None


def is_stored_name(text: str) -> bool:
    """Whether `text` may name a key that exists already.

    Before 2023 any single path segment was a name. Such keys stay in use, so the rule is only what a store can hold: up
    to 255 bytes of UTF-8 without `/`, `\\` and NUL, not `.` or `..`.
    """
    if _SEGMENT(text) is None:
        return False
    if text.isascii():
        return True
    try:
        return len(text.encode()) <= _SEGMENT_BYTES
    except UnicodeEncodeError:  # bytes of a path that were not UTF-8
        return False
