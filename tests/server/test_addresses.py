"""From configured addresses to sockets, and to what clients reach."""

import socket

import pytest

from keswick.config import Address, ConfigError
from keswick.server.addresses import interface_addresses, to_bind, to_reach


def test_an_address_is_bound_as_it_is() -> None:
    assert to_bind(Address("127.0.0.1", 7373)) == ("127.0.0.1", 7373)
    assert to_bind(Address("::1", 1)) == ("::1", 1)
    assert to_bind(Address("localhost", 0))[0] in ("127.0.0.1", "::1")


def test_no_host_is_every_interface() -> None:
    assert to_bind(Address("", 7373))[0] == ("::" if socket.has_dualstack_ipv6() else "0.0.0.0")


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no-such-host\.invalid"):
        to_bind(Address("no-such-host.invalid", 7373))


def test_what_clients_reach() -> None:
    assert "127.0.0.1" in interface_addresses()
    assert to_reach("0.0.0.0") == interface_addresses()
    assert to_reach("127.0.0.2") == ["127.0.0.2"]
    assert to_reach("::1") == ["[::1]"]
