"""The configuration as one immutable value. Every reader ends in it; nothing here reads or checks a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from keswick.keystore.section import StoreSection

DEFAULT_PORT = 7373
PRESENT = "2025"
"""The form and the dialect of today."""


class ConfigError(Exception):
    """The configuration cannot be used. The text names file, line and key, and says what to write instead."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str = "0.0.0.0"  # noqa: S104 - the documented default: all interfaces
    """Empty for all interfaces, those of IPv6 too."""
    port: int = DEFAULT_PORT


@dataclass(frozen=True, slots=True)
class Proxy:
    """`tls.proxy`: who may forward client certificates, and in which header."""

    identities: tuple[str, ...] = ()
    header: str = ""
    admin: bool = True
    """Whether a forwarded certificate may be that of the admin."""


@dataclass(frozen=True, slots=True)
class TLS:
    key: str
    """Path of a PEM file. Empty where a file of an older form leaves it to the flag `--key`."""
    cert: str
    """Path of a PEM file. Empty where a file of an older form leaves it to the flag `--cert`."""
    password: str | None = field(default=None, repr=False)
    ca: str | None = None
    """Path of a PEM file, or of a folder of them."""
    auth: bool | None = None
    """Whether client certificates are verified. None, where nothing is said, means no."""
    proxy: Proxy = Proxy()
    auth_implied: bool = False
    """Whether `auth` is on only because the dialect has it so: a flag may say otherwise."""


@dataclass(frozen=True, slots=True)
class API:
    """`api.<path>`: what is overridden for one route. A timeout is in seconds; None is the route's own."""

    skip_auth: bool = False
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Cache:
    """Expiry in seconds; 0 switches one off."""

    any: float = 300.0
    unused: float = 30.0
    offline: float = 0.0


@dataclass(frozen=True, slots=True)
class Log:
    """Levels are DEBUG -4, INFO 0, WARN 4, ERROR 8 and whatever lies between; OFF is above all."""

    error: int = 0
    audit: int = 1 << 30
    audit_skip: tuple[str, ...] = ()
    audit_required: bool = False
    audit_unit: Literal["ms", "ns"] = "ms"
    """Of the times in the stream at `/v1/log/audit`."""

    OFF: ClassVar[int] = 1 << 30


@dataclass(frozen=True, slots=True)
class Metrics:
    """The optional second listener, for metrics and readiness alone."""

    address: Address
    tls: bool = False
    proxy_protocol: "ProxyProtocol | None" = None


@dataclass(frozen=True, slots=True)
class ProxyProtocol:
    """From which networks, such as `10.0.0.0/8`, connections begin with a PROXY header, version 2, and how many seconds
    it may take. From elsewhere none may."""

    networks: tuple[str, ...]
    timeout: float = 5.0


@dataclass(frozen=True, slots=True)
class Stop:
    """The end of a server, in seconds: how long it still serves everything but says that it is not ready; how long idle
    connections may bring one more request then; how long running requests may take then."""

    delay: float = 0.0
    linger: float = 2.0
    drain: float = 15.0


@dataclass(frozen=True, slots=True)
class Config:
    admin: str
    """Empty where a file of an older form leaves it to the flag `--root`."""
    keystore: StoreSection
    tls: TLS | None
    """None only in development mode, where the certificate is made in memory."""
    address: Address = Address()
    api: Mapping[str, API] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)
    cache: Cache = Cache()
    log: Log = Log()
    keys: tuple[str, ...] = ()
    metrics: Metrics | None = None
    proxy_protocol: ProxyProtocol | None = None
    stop: Stop = Stop()
    limits: Mapping[str, float] = field(default_factory=dict)
    """The bounds of the transport that are set, by the names of the native part's DEFAULT_LIMITS; times in seconds."""
    form: str = PRESENT
    """Of the file: `2020`, `2021`, `transitional` or `2025`, the present one."""
    dialect: str = PRESENT
    """In whose words the server answers: `2021` (v0.13), `2022` (v0.17), `2023` or `2025`."""
    runtime_policies: bool = False
    """Whether policies and assignments may be written through the API."""
    warnings: tuple[str, ...] = ()
    """What was read and means something else, or nothing, today; one sentence each, naming its line."""
    unsaid: tuple[str, ...] = field(default=(), compare=False)
    """Of the keys whose default was another in some release, those that are not set."""

    @property
    def globs_only(self) -> bool:
        """Whether allow rules are globs without exception, as before October 2023."""
        return self.dialect != PRESENT
