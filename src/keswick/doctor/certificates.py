"""Certificates, as people ask about them: for how long, for which names, for which use."""

import time
from collections.abc import Iterator
from ipaddress import ip_address

from keswick._native import Certificate
from keswick.doctor import Finding, failed, ok, warning
from keswick.encoding import day
from keswick.identity import RENEWAL_SECONDS


def dates(certificate: Certificate, whose: str) -> Iterator[Finding]:
    """`whose`: such as `the server's certificate`."""
    now = time.time()
    begin, end = (day(moment) for moment in (certificate.not_before, certificate.not_after))
    if now < certificate.not_before:
        yield failed(f"{whose} is not valid before {begin}: see whether the clock is right, or get another one")
    elif now > certificate.not_after:
        yield failed(f"{whose} expired on {end}: get a new one")
    elif now > certificate.not_after - RENEWAL_SECONDS:
        days = int(certificate.not_after - now) // 86400
        yield warning(f"{whose} expires on {end}, in {days} day{'s' * (days != 1)}: renew it")
    else:
        yield ok(f"{whose} is valid until {end}")


def names(certificate: Certificate) -> list[str]:
    return [*certificate.dns_names, *certificate.ip_addresses]


def is_for(certificate: Certificate, host: str) -> bool:
    """Whether a client that calls the host by this name or address takes the certificate for its own (RFC 6125: a `*`
    stands for the whole first label)."""
    try:
        return ip_address(host) in map(ip_address, certificate.ip_addresses)
    except ValueError:
        wanted = host.lower().rstrip(".")
        label, _, domain = wanted.partition(".")
        return any(
            name == wanted or (bool(label) and name == f"*.{domain}")
            for name in (name.lower().rstrip(".") for name in certificate.dns_names)
        )
