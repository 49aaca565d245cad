"""What a configuration means for requests, as one immutable value. A reload builds a new one and swaps one
reference; so does a policy that is written at run time."""

import dataclasses
from dataclasses import dataclass

from keswick.config import Config
from keswick.crypto import SecretKey
from keswick.keystore import KeyStore
from keswick.names import is_name, is_stored_name
from keswick.server.access import Access, RunTimeAccess
from keswick.server.cache import KeyCache
from keswick.server.forwarded import Forwarding
from keswick.server.listings import Listings
from keswick.server.logs import AuditForm

_BEFORE_2023 = ("2021", "2022")


@dataclass(frozen=True, slots=True)
class State:
    """`configured`: who may do what by the configuration alone; `access`: with what was written at run time.
    `timeouts`: seconds, by the index of a route. `open`: the paths that need no certificate. `forwarding`: None without
    a TLS proxy."""

    config: Config
    configured: Access
    access: Access
    timeouts: tuple[float, ...]
    open: frozenset[str]
    store: KeyStore
    cache: KeyCache[SecretKey]
    listings: Listings
    forwarding: Forwarding | None

    @classmethod
    def of(
        cls,
        config: Config,
        started_at: str,
        timeouts: tuple[float, ...],
        store: KeyStore,
        cache: KeyCache[SecretKey],
        listings: Listings,
        forwarding: Forwarding | None = None,
    ) -> "State":
        configured = Access.configured(config, started_at)
        return cls(
            config=config,
            configured=configured,
            access=configured,
            timeouts=timeouts,
            open=frozenset(path for path, api in config.api.items() if api.skip_auth),
            store=store,
            cache=cache,
            listings=listings,
            forwarding=forwarding,
        )

    @property
    def audit_form(self) -> AuditForm:
        """Of audit events on the console and in `/v1/log/audit`."""
        if self.config.dialect in _BEFORE_2023:
            return "2021"
        return "2023" if self.config.log.audit_unit == "ns" else "ms"

    @property
    def names_are_free(self) -> bool:
        """Whether any segment of a path is a name, as until 2022."""
        return self.config.dialect in _BEFORE_2023

    def is_role_name(self, name: str) -> bool:
        """Whether a policy or an identity may have that name."""
        return is_stored_name(name) if self.names_are_free else is_name(name)

    def is_proxy(self, identity: str) -> bool:
        return self.forwarding is not None and identity in self.forwarding.proxies

    def with_access(self, written: RunTimeAccess) -> "State":
        """The same configuration with what was written at run time until now."""
        return dataclasses.replace(self, access=written.above(self.configured))
