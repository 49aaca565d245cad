"""As much of Protocol Buffers as a stored key needs (https://protobuf.dev/programming-guides/encoding/).

A message is a row of fields, each a varint tag, `number << 3 | wire type`, and a value. Unknown fields are skipped, as
are fields of a wire type other than the expected one; of a repeated number the last counts, and messages are merged.
"""

_VARINT, _FIXED64, _LENGTH, _GROUP, _END_GROUP, _FIXED32 = range(6)
_MAX_NUMBER = (1 << 29) - 1
_MASK = (1 << 64) - 1


class Message:
    """A message that was read. Raises ValueError when `data` is not one, showing nothing of it."""

    __slots__ = ("_integers", "_strings")

    def __init__(self, data: bytes) -> None:
        self._integers: dict[int, int] = {}
        self._strings: dict[int, list[bytes]] = {}
        groups: list[int] = []  # the open ones; what they hold is unknown to us
        at = 0
        while at < len(data):
            tag, at = _read_varint(data, at)
            number, wire_type = tag >> 3, tag & 7
            if not 0 < number <= _MAX_NUMBER:
                raise ValueError("not a Protocol Buffers message: a field number is out of range")
            if wire_type == _VARINT:
                value, at = _read_varint(data, at)
                if not groups:
                    self._integers[number] = value
            elif wire_type == _LENGTH:
                size, at = _read_varint(data, at)
                if not groups:
                    self._strings.setdefault(number, []).append(data[at : at + size])
                at += size
            elif wire_type == _FIXED64:
                at += 8
            elif wire_type == _FIXED32:
                at += 4
            elif wire_type == _GROUP:
                groups.append(number)
            elif wire_type != _END_GROUP or not groups or groups.pop() != number:
                raise ValueError("not a Protocol Buffers message: a wire type is out of place")
        if at > len(data) or groups:
            raise ValueError("the Protocol Buffers message is cut short")

    def integer(self, number: int) -> int:
        """A signed 64-bit integer, 0 when it is absent."""
        value = self._integers.get(number, 0)
        return value - (1 << 64) if value >> 63 else value

    def binary(self, number: int) -> bytes:
        """A string of bytes, empty when it is absent."""
        return self._strings[number][-1] if number in self._strings else b""

    def message(self, number: int) -> "Message | None":
        # Merging two messages is the same as reading one after the other.
        return Message(b"".join(self._strings[number])) if number in self._strings else None


def integer(number: int, value: int) -> bytes:
    """A field with a signed 64-bit integer; nothing for 0."""
    return _varint(number << 3 | _VARINT) + _varint(value & _MASK) if value else b""


def binary(number: int, value: bytes) -> bytes:
    """A field with a string of bytes; nothing for an empty one."""
    return message(number, value) if value else b""


def message(number: int, value: bytes) -> bytes:
    """A field with an encoded message, be it empty."""
    return _varint(number << 3 | _LENGTH) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The value and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("the Protocol Buffers message is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
    if byte > 0x7F or value > _MASK:
        raise ValueError("not a Protocol Buffers message: a number has more than 64 bits")
    return value, at
