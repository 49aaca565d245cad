"""Clients behind a TLS proxy: the certificate that it forwards with each request, and the address that it names.

A proxy keeps connections and sends over each of them what its clients ask for, one after the other or side by side. So
a client is told by the header of its request alone. What is remembered, is remembered by the whole text of the header.
"""

import re
import time
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from keswick import pem
from keswick._native import Certificate, Request, Verifier
from keswick.config import PRESENT, Config
from keswick.encoding import b64decode_go
from keswick.identity import identity_of
from keswick.server.caller import REQUIRED, SEVERAL, Caller, Problem
from keswick.server.logs import ErrorLog
from keswick.server.replies import FORBIDDEN

LONGEST = 64 << 10
"""Characters of a header that are looked at."""
REMEMBERED = 1024
"""Clients whose certificates are not parsed anew with each request, and at most so many characters of each."""
REMEMBERED_LENGTH = 16 << 10
REFUSED_SECONDS = 5.0
"""How long a certificate that was not trusted is not verified again."""

INVALID = Problem(400, "invalid client certificate", always=True)
UNTRUSTED = Problem(403, "not authorized: client certificate is not trusted", always=True)
NOT_PERMITTED = Problem(403, FORBIDDEN, always=True)

_ALWAYS = float("inf")


class _Finding(NamedTuple):
    """Who a header names, and from when until when that holds, in seconds since 1970."""

    caller: Caller
    since: float = 0.0
    until: float = _ALWAYS


class Forwarding:
    """Who sends the requests of TLS proxies. Called for them alone, on the I/O thread alone."""

    def __init__(self, config: Config, verifier: Verifier | None, errors: ErrorLog) -> None:
        """`verifier`: what clients' certificates must stand up to; None when they are not verified."""
        assert config.tls is not None
        section = config.tls.proxy
        self.proxies = frozenset(section.identities)
        """The identities of the proxies."""
        self._header = section.header
        self._forbidden = self.proxies if section.admin else self.proxies | {config.admin}
        """Identities that nobody has who comes through a proxy."""
        self._verifier = verifier
        self._takes_servers = config.dialect != PRESENT
        self._errors = errors
        self._known: OrderedDict[str, _Finding] = OrderedDict()

    @classmethod
    def configured(cls, config: Config, verifier: Verifier | None, errors: ErrorLog) -> "Forwarding | None":
        """None when there is no proxy."""
        has_proxy = config.tls is not None and config.tls.proxy.identities
        return cls(config, verifier, errors) if has_proxy else None

    def caller_of(self, request: Request) -> Caller:
        """Who sent a request that came from a proxy."""
        values = request.headers(self._header)
        if len(values) != 1:
            return Caller("", SEVERAL._replace(always=True) if values else REQUIRED)
        (text,) = values
        now = time.time()
        finding = self._known.get(text)
        if finding is not None and finding.since <= now < finding.until:
            self._known.move_to_end(text)
            return finding.caller
        finding = self._look_at(text, now)
        if len(text) <= REMEMBERED_LENGTH:
            self._known[text] = finding
            self._known.move_to_end(text)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return finding.caller

    def _look_at(self, text: str, now: float) -> _Finding:
        if not text:  # as some proxies say that there is none
            return _Finding(Caller("", INVALID._replace(always=False)))
        if "," in text:  # two headers in one line, the first of which may be the client's own
            return _Finding(Caller("", SEVERAL._replace(always=True)))
        try:
            certificate = Certificate(certificate_in(text))
        except ValueError as error:
            self._errors.info(f"a TLS proxy forwarded what is no client certificate: {error}")
            return _Finding(Caller("", INVALID))
        if certificate.is_ca:
            return _Finding(Caller("", REQUIRED._replace(always=True)))
        identity = identity_of(certificate.public_key)
        if identity in self._forbidden:
            return _Finding(Caller(identity, NOT_PERMITTED))
        if self._verifier is None:
            return _Finding(Caller(identity))
        try:
            self._verify(self._verifier, certificate, identity)
        except ValueError as error:
            self._errors.info(f"a forwarded client certificate is not trusted: {error}", {"req.identity": identity})
            return _Finding(Caller(identity, UNTRUSTED), now, now + REFUSED_SECONDS)
        return _Finding(Caller(identity), certificate.not_before, certificate.not_after)

    def _verify(self, verifier: Verifier, certificate: Certificate, identity: str) -> None:
        """Raises ValueError that says why the certificate is not trusted."""
        try:
            verifier.verify([certificate.der])
        except ValueError:
            if not self._takes_servers:
                raise
            verifier.verify([certificate.der], server_auth=True)
            self._errors.warn_once(
                "a TLS proxy forwarded a client certificate that is for servers only, as releases until 2023 took it; "
                "clients should get certificates with the extended key usage clientAuth",
                {"req.identity": identity},
            )


# --- what stands in the headers of a proxy ---

_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")


def certificate_in(text: str) -> bytes:
    """What should be a certificate (DER) in the value of a header: PEM in the escapes of a URL's query, or the base64
    of DER. Of several PEM blocks the first counts. Raises ValueError, which does not show the value.

    The first is nginx's `$ssl_client_escaped_cert`, the second HAProxy's `ssl_c_der,base64`.
    """
    if len(text) > LONGEST:
        raise ValueError(f"the header has more than {LONGEST} characters")
    if "%" not in text and "-----BEGIN" not in text:
        return b64decode_go(text)
    if _BAD_ESCAPE.search(text):
        raise ValueError("after a '%' two hexadecimal digits are expected")
    block = pem.first(unquote_to_bytes(text.replace("+", " ")).decode("latin-1"))
    if block.label != "CERTIFICATE":
        raise ValueError(f"the PEM block is {'a private key' if block.is_private_key else 'of another type'}")
    return block.der


def client_address(request: Request) -> str | None:
    """The address of its client that a proxy names last in `X-Forwarded-For` or, without that, in `Forwarded`; None if
    it names none. What stands further left may come from anybody."""
    if values := request.headers("x-forwarded-for"):
        return address_in(values[-1].rpartition(",")[2])
    if values := request.headers("forwarded"):
        return address_in(_for(values[-1]))
    return None


_LAST_BACKWARDS = re.compile('(?:[^,"]|"[^"]*")*')
_PAIR = re.compile('(?:[^;"]|"[^"]*")+')


def _for(text: str) -> str:
    """The value of `for` in the last element of `Forwarded` (RFC 7239), such as `for="[2001:db8::1]:4711";host=kes`.

    Within quotes nothing separates: some proxies write the host there that the client asked for, which may hold any
    text. Quotes are paired from the end, so that one which the client left open changes nothing.
    """
    found = _LAST_BACKWARDS.match(text[::-1])
    for pair in _PAIR.finditer(found[0][::-1] if found else ""):
        name, _, value = pair[0].partition("=")
        if name.strip().lower() == "for":
            return value.strip().removeprefix('"').removesuffix('"')
    return ""


_WITH_PORT = re.compile(r"\[(?P<v6>[^][]*)\](?::[0-9]+)?|(?P<v4>[0-9.]+):[0-9]+", re.ASCII)


def address_in(text: str) -> str | None:
    """The IP address in `IP`, `IP:PORT`, `[IPv6]` or `[IPv6]:PORT`; None in anything else, such as `unknown`."""
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        text = match["v6"] or match["v4"] or ""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:  # it says something on the proxy's machine alone, and may be any text
            return None
        address = address.ipv4_mapped or address
    return str(address)
