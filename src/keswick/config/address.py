"""Addresses to listen on: `IP:PORT`, `:PORT`, `IP`, `[v6]:PORT`, `[v6]`, or a local host name in place of the IP."""

import re
from ipaddress import ip_address

from keswick.config.model import DEFAULT_PORT, Address, ConfigError

_FORM = re.compile(r"(?:\[(?P<bracketed>[^][]*)\]|(?P<host>[^][:]*))(?::(?P<port>[0-9]{1,5}))?")
_LABEL = r"(?!-)[0-9A-Za-z_-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*(?!\d+\.?\Z){_LABEL}\.?", re.ASCII)


def parse(text: str) -> Address:
    """No host means all interfaces. Raises ValueError with a sentence that says what to write, without `text`."""
    match = _FORM.fullmatch(text)
    if match is None or not text:
        raise ValueError(
            "this is not an address; write 'IP:PORT', ':PORT', 'NAME:PORT', or '[IP]:PORT' for an IPv6 address"
        )
    bracketed, host, port = match.group("bracketed", "host", "port")
    if bracketed is not None:
        host = bracketed
        if not _is_ip(host, 6):
            raise ValueError("between the brackets of an address only an IPv6 address can stand")
    elif host and not _is_ip(host, 4) and _HOST_NAME.fullmatch(host) is None:
        raise ValueError("the host of an address must be an IP address or the name of this machine")
    if not host and port is None:
        raise ValueError("an address needs an IP address or a port, such as ':7373'")
    number = DEFAULT_PORT if port is None else int(port)
    if number > 65535:
        raise ValueError("the port of an address must be a number from 0 to 65535")
    return Address(host, number)


def parse_address(text: str, name: str) -> Address:
    """The address that a flag `name` gives. Raises ConfigError."""
    try:
        return parse(text)
    except ValueError as failure:
        raise ConfigError(f"{name}: {failure}") from None


def _is_ip(text: str, version: int) -> bool:
    try:
        return ip_address(text).version == version
    except ValueError:
        return False
