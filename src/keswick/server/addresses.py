"""The addresses of this machine, and what a configured address means for a socket."""

import fcntl
import socket
import struct

from keswick.config import Address, ConfigError

_SIOCGIFADDR = 0x8915  # linux/sockios.h: the IPv4 address of an interface


def interface_addresses() -> list[str]:
    """The IP addresses of the interfaces, link-local ones left out: IPv4, or IPv6 where there is no IPv4."""
    addresses = [address for _, name in socket.if_nameindex() if (address := _ipv4(name))]
    return sorted(set(addresses), key=lambda text: (text != "127.0.0.1", text)) or _ipv6() or ["127.0.0.1"]


def _ipv4(interface: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            reply = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    address = socket.inet_ntoa(reply[20:24])
    return None if address.startswith("169.254.") else address


def _ipv6() -> list[str]:
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as table:
            raw = [line.split()[0] for line in table]
    except OSError:
        return []
    return [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(text)) for text in raw if not text.startswith("fe80")]


def to_bind(address: Address) -> tuple[str, int]:
    """The IP address and port of a socket for `address`; no host means all interfaces. Raises ConfigError."""
    if not address.host:
        return ("::" if socket.has_dualstack_ipv6() else "0.0.0.0"), address.port  # noqa: S104 - as configured
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on '{address.host}': {error.strerror}; it must be an IP address or a name of this machine"
        ) from None
    return str(found[0][4][0]), address.port


def to_reach(host: str) -> list[str]:
    """The hosts under which a socket bound to `host` can be reached, as they stand in a URL."""
    addresses = interface_addresses() if host in ("0.0.0.0", "::") else [host]  # noqa: S104 - compared only
    return [f"[{address}]" if ":" in address else address for address in addresses]
