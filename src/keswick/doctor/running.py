"""Servers, as a client with the settings of the environment meets them: are they there, can they be trusted, and what
may the client do?"""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from keswick import _native, pem, roots
from keswick._native import CallFailed, Certificate, Verifier
from keswick.client import APIError, Client, ConnectionFailed, Endpoint, environment
from keswick.client.endpoint import DEFAULT_ENDPOINT, parse_all
from keswick.client.failover import explained
from keswick.client.results import IdentityInfo
from keswick.client.results import Policy as PolicyOfReply
from keswick.doctor import Check, Finding, certificates, failed, milliseconds, ok, rights, warning
from keswick.identity import APIKey, identity_of
from keswick.policy import Policy

if TYPE_CHECKING:
    pass

_TIMEOUT = 5.0
_SLOW = 1.0  # seconds

Password = Callable[[], str]
"""Asks for the password of an encrypted private key."""


def checks(
    variables: Mapping[str, str], *, path: str | None = None, password: Password | None = None
) -> Iterator[Check]:
    """`variables`: of the environment. `path`: what the client wants to call."""
    settings = environment.read(variables)
    client = _Identity(settings, variables, password)
    yield Check("client", client.credentials)
    yield Check("client certificate", client.certificate)
    trust = _Trust(settings)
    yield Check("trust", trust.authorities)
    try:
        endpoints = parse_all(settings.endpoints or DEFAULT_ENDPOINT)
    except ValueError as error:
        name = environment.variable(environment.SERVER, variables)
        yield Check("server", partial(_only, failed(f"{name}: {error}")))
        return
    for endpoint in endpoints:
        yield from _Server(endpoint, client, trust, path).checks(str(endpoint) if len(endpoints) > 1 else "")


def _only(finding: Finding) -> Iterator[Finding]:
    yield finding


class _Identity:
    """Who the client is."""

    def __init__(self, settings: environment.Settings, variables: Mapping[str, str], password: Password | None) -> None:
        self.settings = settings
        self.variables = variables
        self.password = password

    def credentials(self) -> Iterator[Finding]:
        settings = self.settings
        key, cert, api_key = (
            environment.variable(names, self.variables)
            for names in (environment.KEY_FILE, environment.CERT_FILE, environment.API_KEY)
        )
        if settings.api_key and (settings.key or settings.cert):
            yield failed(f"{api_key} and {cert if settings.cert else key} are both set: unset one of them")
        elif settings.api_key:
            try:
                yield ok(f"{api_key} is the API key of {APIKey.parse(settings.api_key).identity}")
            except ValueError as error:
                yield failed(f"{api_key}: {error}; make a new one with 'kes identity new'")
        elif settings.key and settings.cert:
            Client(DEFAULT_ENDPOINT, key=settings.key, cert=settings.cert, password=self.password, verify=False).close()
            yield ok(f"{cert} and {key} belong together")
        elif settings.key or settings.cert:
            there, absent = (key, "KES_CLIENT_CERT") if settings.key else (cert, "KES_CLIENT_KEY")
            yield failed(f"{there} is set, and {absent} is not: a certificate and its private key are needed together")
        else:
            yield failed("neither KES_API_KEY nor KES_CLIENT_CERT is set: servers refuse clients that show nothing")

    def certificate(self) -> Iterator[Finding]:
        if not self.settings.cert:
            return  # that of an API key is made for each connection
        ders = [block.der for block in pem.blocks(Path(self.settings.cert).read_text("ascii", "replace"))]
        leaves = [leaf for leaf in map(Certificate, ders) if not leaf.is_ca]
        if not leaves:
            yield failed("it is that of an authority, and servers pass those over: get one with CA:FALSE")
            return
        if len(leaves) > 1:
            yield failed(
                f"'{self.settings.cert}' has {len(leaves)} certificates that are no authority's: leave one there"
            )
        leaf = leaves[0]
        yield ok(f"its identity is {identity_of(leaf.public_key)}")
        yield from certificates.dates(leaf, f"'{self.settings.cert}'")
        if not _is_for_clients(leaf):
            yield warning(
                "its extended key usage has no clientAuth: servers that verify their clients' certificates refuse it"
            )

    def client(self, endpoint: Endpoint, *, verify: bool) -> Client:
        """Raises ValueError or OSError, as `credentials` has told."""
        settings = self.settings
        return Client(
            str(endpoint),
            api_key=settings.api_key,
            key=settings.key,
            cert=settings.cert,
            password=self.password,
            ca_file=settings.ca_file,
            verify=verify,
            timeout=_TIMEOUT,
            connect_timeout=_TIMEOUT,
            retries=0,
        )


def _is_for_clients(leaf: Certificate) -> bool:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        usages: x509.ExtendedKeyUsage = (
            x509.load_der_x509_certificate(leaf.der).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        )
    except (x509.ExtensionNotFound, ValueError):
        return True
    return bool({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usages))


class _Trust:
    """Whose certificates the client trusts."""

    def __init__(self, settings: environment.Settings) -> None:
        self.settings = settings

    @property
    def source(self) -> str:
        return f"KES_CA_FILE ('{self.settings.ca_file}')" if self.settings.ca_file else "the system's certificates"

    @cached_property
    def roots(self) -> list[bytes]:
        """Raises OSError or ValueError."""
        found = roots.certificates(Path(self.settings.ca_file)) if self.settings.ca_file else roots.system()
        return list(found)

    def authorities(self) -> Iterator[Finding]:
        if self.roots:
            yield ok(f"{len(self.roots)} certificate{'s' * (len(self.roots) != 1)} to trust, from {self.source}")
        else:
            yield failed(
                f"there is no certificate to trust in {self.source}: set KES_CA_FILE to a PEM file with that of the "
                "server or of its CA"
            )


class _Server:
    """One server, step by step. What cannot be reached is not asked the next question."""

    def __init__(self, endpoint: Endpoint, identity: _Identity, trust: _Trust, path: str | None) -> None:
        self.endpoint = endpoint
        self.identity = identity
        self.trust = trust
        self.path = path
        self.reached = False
        self.trusted = False
        self.answers = False

    def checks(self, prefix: str) -> Iterator[Check]:
        for name, run in (
            ("name", self.resolve),
            ("connection", self.connect),
            ("certificate", self.certificate),
            ("version", self.version),
            ("identity", self.who_we_are),
            ("rights", self.rights),
            ("ready", self.ready),
            ("status", self.status),
        ):
            yield Check(f"{prefix} {name}".lstrip() if prefix else f"server {name}", run)

    # --- the network ---

    def resolve(self) -> Iterator[Finding]:
        try:
            yield ok(f"{self.endpoint.host} is {', '.join(self._addresses())}")
        except OSError as error:
            yield failed(f"{self.endpoint.host} has no address ({error.strerror}): see the name, and the DNS")

    def connect(self) -> Iterator[Finding]:
        try:
            addresses = self._addresses()
        except OSError:
            return
        silent = []
        for address in addresses:
            begin = time.perf_counter()
            try:
                socket.create_connection((address, self.endpoint.port), timeout=_TIMEOUT).close()
            except OSError as error:
                silent.append(f"{address} port {self.endpoint.port}: {error.strerror or 'no answer in time'}")
            else:
                self.reached = True
                yield ok(f"{address} port {self.endpoint.port}, after {milliseconds(time.perf_counter() - begin)}")
        for text in silent:
            if self.reached:
                yield warning(f"{text}; clients that try this address first lose time")
            else:
                yield failed(f"{text}; does a server run there, and does a firewall let this machine through?")

    def _addresses(self) -> list[str]:
        found = socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(address[4][0]) for address in found))

    # --- TLS ---

    def certificate(self) -> Iterator[Finding]:
        if not self.reached:
            return
        host, port = self.endpoint.host, self.endpoint.port
        try:
            chain = _native.peer_certificates(host, port, timeout=_TIMEOUT)
        except CallFailed as failure:
            self.reached = False
            raise explained(self.endpoint, failure) from None
        leaf = Certificate(chain[0])
        names = certificates.names(leaf)
        yield ok(f"it is {leaf.subject or 'without a subject'}, for {', '.join(names) or 'no name'}")
        yield from certificates.dates(leaf, "it")
        is_for_host = certificates.is_for(leaf, host)
        if not is_for_host:
            if names:
                advice = (
                    f"call the server by one of these names, or make a certificate with '{host}' in its subjectAltName"
                )
            else:
                advice = f"make one with '{host}' in its subjectAltName"
            yield failed(f"it is not for '{host}', and clients refuse it: {advice}")
        try:
            Verifier(self.trust.roots).verify(chain, server_auth=True)
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
            yield failed(
                f"it is not trusted with {self.trust.source} ({reason.removeprefix('bad client certificate: ')}): set "
                "KES_CA_FILE to a PEM file with the certificate of the server or of its CA"
            )
        else:
            self.trusted = is_for_host
            yield ok(f"it is trusted, with {self.trust.source}")

    # --- the API ---

    @cached_property
    def client(self) -> Client:
        """It also talks to a server that it does not trust, for it tells no secret."""
        return self.identity.client(self.endpoint, verify=False)

    def version(self) -> Iterator[Finding]:
        if not self.reached:
            return
        version = self.client.version()
        self.answers = True
        yield ok(f"it is {version.version or 'of an unknown version'}")
        if self.trusted:  # and if not, that was told
            with self.identity.client(self.endpoint, verify=True) as client:
                client.version()

    @cached_property
    def described(self) -> tuple[IdentityInfo, PolicyOfReply | None]:
        return self.client.describe_self()

    def who_we_are(self) -> Iterator[Finding]:
        if not self.answers:
            return
        who, policy = self.described
        if who.is_admin:
            yield ok(f"the server takes this client for the admin, {who.identity}")
        elif policy is not None:
            yield ok(f"the server takes this client for {who.identity}, with the policy '{policy.name}'")
        else:
            yield failed(
                f"the server takes this client for {who.identity}, which has no policy and is refused everything: add "
                "it to the 'identities' of a policy"
            )

    def rights(self) -> Iterator[Finding]:
        if not self.answers:
            return
        try:
            who, described = self.described
        except (APIError, ConnectionFailed):
            return
        if who.is_admin:
            yield ok("the admin may call everything")
        elif described is not None:
            policy = Policy(described.name, described.allow, described.deny)
            if self.path is None:
                yield from rights.of_routes("this client", policy, self._routes())
            else:
                yield rights.of_path("this client", policy, self.path)

    def _routes(self) -> list[str]:
        """What the server has, if it says so to this client; otherwise what servers of today have."""
        try:
            return [api.path for api in self.client.apis()]
        except (APIError, ConnectionFailed):
            from keswick.server.routes import ROUTES

            return [route.path for route in ROUTES if not route.is_optional]

    def ready(self) -> Iterator[Finding]:
        if not self.answers:
            return
        begin = time.perf_counter()
        try:
            self.client.ready()
        except APIError as error:
            yield self._refused(error, "/v1/ready", "whether it is ready")
            return
        yield ok(f"it is ready, after {milliseconds(time.perf_counter() - begin)}")

    def status(self) -> Iterator[Finding]:
        if not self.answers:
            return
        try:
            status = self.client.status()
        except APIError as error:
            yield self._refused(error, "/v1/status", "how it is")
            return
        if status.keystore_unreachable:
            yield failed("it does not reach its key store: see whether that runs; the server's error log tells more")
        elif status.keystore_latency > _SLOW * 1000:
            yield warning(f"its key store takes {status.keystore_latency} ms: see what slows that or its network down")
        else:
            yield ok(f"its key store answers after {status.keystore_latency} ms")

    def _refused(self, error: APIError, path: str, what: str) -> Finding:
        """Who may not ask may still use keys."""
        if error.status == 403:
            return ok(f"this client may not ask {what} ('{path}')")
        return failed(str(error))
