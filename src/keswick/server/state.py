"""What a configuration means for requests, as one immutable value. A reload builds a new one and swaps one
reference."""

from collections.abc import Mapping
from dataclasses import dataclass

from keswick.config import Config
from keswick.crypto import SecretKey
from keswick.keystore import KeyStore
from keswick.policy import Policy
from keswick.server.cache import KeyCache


@dataclass(frozen=True, slots=True)
class State:
    """`policies`: by name. `assigned`: each identity's policy; a look-up costs the same however many there are.
    `timeouts`: seconds, by the index of a route. `open`: the paths that need no certificate."""

    config: Config
    admin: str
    policies: Mapping[str, Policy]
    assigned: Mapping[str, Policy]
    timeouts: tuple[float, ...]
    open: frozenset[str]
    store: KeyStore
    cache: KeyCache[SecretKey]

    @classmethod
    def of(cls, config: Config, timeouts: tuple[float, ...], store: KeyStore, cache: KeyCache[SecretKey]) -> "State":
        policies = {name: Policy(name, policy.allow, policy.deny) for name, policy in config.policies.items()}
        return cls(
            config=config,
            admin=config.admin,
            policies=policies,
            assigned={
                identity: policies[name] for name, policy in config.policies.items() for identity in policy.identities
            },
            timeouts=timeouts,
            open=frozenset(path for path, api in config.api.items() if api.skip_auth),
            store=store,
            cache=cache,
        )

    def permits(self, identity: str, path: str) -> bool:
        """Whether the identity may call the path: the admin everything, another what its policy allows."""
        if identity == self.admin:
            return True
        policy = self.assigned.get(identity)
        return policy is not None and policy.permits(path)
