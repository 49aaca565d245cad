"""Text forms that the original inherits from its language, Go, and that stored keys and requests depend on."""

import binascii
import re
from datetime import datetime, timedelta

import msgspec

_EPOCH = datetime(1970, 1, 1)  # without a zone: all times here are UTC
_SECOND = 1_000_000_000
_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(?:Z|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
_OBJECT = msgspec.json.Decoder(dict[str, object])


def b64decode_go(text: str | bytes) -> bytes:
    r"""Decode base64 as Go's `base64.StdEncoding` does.

    The standard alphabet with padding; CR and LF are skipped wherever they stand, anything else is refused, other white
    space too. Spare bits before the padding may be set. Raises ValueError, which does not show the text.

    What msgspec decodes into a `bytes` field follows the same rule, but for CR and LF (`\r` and `\n` in a JSON string),
    which it refuses.
    """
    try:
        data = text.encode("ascii") if isinstance(text, str) else text
        data = data.translate(None, b"\r\n")
        # Up to Python 3.14, `strict_mode` overlooks padding after a complete group of four.
        if len(data) - len(data.rstrip(b"=")) > 2 or len(data) % 4:
            raise ValueError
        return binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        raise ValueError("not standard base64 with padding") from None


def rfc3339(ns: int) -> str:
    """The time `ns` nanoseconds after 1970 as `2023-11-14T22:13:20.5Z`: UTC, trailing zeros of the fraction cut.

    Raises ValueError outside the years 1 to 9999.
    """
    seconds, fraction = divmod(ns, _SECOND)
    try:
        text = (_EPOCH + timedelta(seconds=seconds)).isoformat()
    except OverflowError:
        raise ValueError("the time is outside the years 1 to 9999") from None
    if fraction:
        text += f".{fraction:09}".rstrip("0")
    return text + "Z"


def day(seconds: int) -> str:
    """The day, in UTC, of a moment in seconds after 1970, for people."""
    try:
        return f"{_EPOCH + timedelta(seconds=seconds):%Y-%m-%d}"
    except OverflowError:
        return "a day that no calendar has"


def parse_rfc3339(text: str) -> int:
    """Nanoseconds after 1970 of an RFC 3339 time, as strict as Go's `time.Time.UnmarshalJSON`; digits past the ninth of
    the fraction are dropped. Raises ValueError.
    """
    try:
        match = _RFC3339.fullmatch(text)
        if not match:
            raise ValueError
        time, fraction, sign, hours, minutes = match.groups()
        seconds = (datetime.fromisoformat(time) - _EPOCH) // timedelta(seconds=1)
    except ValueError:
        raise ValueError("not an RFC 3339 time such as 2006-01-02T15:04:05Z") from None
    if sign:
        offset = int(hours) * 3600 + int(minutes) * 60
        seconds -= offset if sign == "+" else -offset
    return seconds * _SECOND + int((fraction or "")[:9].ljust(9, "0"))


def json_object(data: bytes) -> dict[str, object]:
    """Decode one JSON object as Go's `json.Unmarshal` fills a struct: the names in any case, which are given in lower
    case; `null` is as good as absent; of a repeated name the last counts. Raises ValueError.
    """
    try:
        decoded = _OBJECT.decode(data)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError("not a JSON object") from None
    return {name.casefold(): value for name, value in decoded.items() if value is not None}
