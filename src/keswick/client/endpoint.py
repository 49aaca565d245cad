"""Where a server is."""

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

DEFAULT_ENDPOINT = "https://127.0.0.1:7373"
_DEFAULT_PORT = 443  # of every URL without a port, and so it was with the original
_SCHEME = re.compile(r"\Ahttps?://", re.IGNORECASE)
_MAX_LABEL = 63


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
        address = _SCHEME.sub("", text.strip()).rstrip("/")
        try:
            parts = urlsplit("https://" + address)
            host, port = _ascii(parts.hostname or ""), parts.port
        except ValueError:
            host, port = "", None
        if not host or parts.netloc != address or "@" in address:
            raise ValueError(f"'{text}' is not an endpoint such as {DEFAULT_ENDPOINT}")
        return cls(host, _DEFAULT_PORT if port is None else port)

    def __str__(self) -> str:
        return f"https://[{self.host}]:{self.port}" if ":" in self.host else f"https://{self.host}:{self.port}"


def parse_all(endpoints: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """Several, or one text in which commas separate them. Raises ValueError when there is none."""
    texts = endpoints.split(",") if isinstance(endpoints, str) else endpoints
    parsed = tuple(dict.fromkeys(Endpoint.parse(text) for text in texts if text.strip()))
    if not parsed:
        raise ValueError("no endpoint given")
    return parsed


def _ascii(host: str) -> str:
    if not host.isascii():
        return host.encode("idna").decode()
    if ":" not in host and not all(1 <= len(label) <= _MAX_LABEL for label in host.removesuffix(".").split(".")):
        raise ValueError("a label of the name is empty or too long")
    return host
