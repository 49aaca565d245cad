"""Where a server is."""

import re
from collections.abc import Sequence
from typing import NamedTuple

DEFAULT_ENDPOINT = "https://127.0.0.1:7373"
_DEFAULT_PORT = 443  # of every URL without a port, and so it was with the original
_URL = re.compile(
    r"(?:https?://)?(?:\[(?P<ip>[^\]]+)\]|(?P<name>[^\[\]/?#@:\s]+))(?::(?P<port>[0-9]{1,5}))?/*", re.IGNORECASE
)
_MAX_LABEL = 63  # bytes, says DNS
_MAX_PORT = 65535


class Endpoint(NamedTuple):
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """`https://host:port`, `https://host`, `host:port` or `host`; without a port 443. `http://` is read as
        `https://`, an international name in its ASCII form. Raises ValueError.

        >>> Endpoint.parse("kes.example.com:7373")
        Endpoint(host='kes.example.com', port=7373)
        """
        match = _URL.fullmatch(text.strip())
        try:
            if match is None:
                raise ValueError
            port = int(match["port"] or _DEFAULT_PORT)
            if port > _MAX_PORT:
                raise ValueError
            return cls(_ipv6(match["ip"]) if match["ip"] else _ascii(match["name"]), port)
        except ValueError:
            raise ValueError(f"'{text}' is not an endpoint such as {DEFAULT_ENDPOINT}") from None

    def __str__(self) -> str:
        return f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"


def parse_all(endpoints: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """Several, or one text in which commas separate them. Raises ValueError when there is none."""
    texts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    parsed = tuple(dict.fromkeys(Endpoint.parse(text) for text in texts if text.strip()))
    if not parsed:
        raise ValueError("no endpoint given")
    return parsed


def _ipv6(text: str) -> str:
    from ipaddress import IPv6Address  # late: few endpoints need it

    return str(IPv6Address(text))


def _ascii(name: str) -> str:
    """An international name as DNS knows it."""
    if not name.isascii():
        name = name.encode("idna").decode()
    if not all(1 <= len(label) <= _MAX_LABEL for label in name.removesuffix(".").split(".")):
        raise ValueError("a label of the name is empty or too long")
    return name.lower()
