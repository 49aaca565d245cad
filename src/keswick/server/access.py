"""Who may do what: the policies and assignments of the configuration, and above them those written at run time.

What is written at run time is kept in memory only, goes before the configuration, and outlives its reload; a restart
forgets it. Only the main thread writes, one call after the other; every other thread reads one immutable `Access`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from keswick.config import Config
from keswick.policy import Policy


@dataclass(frozen=True, slots=True)
class PolicyEntry:
    policy: Policy
    created_at: str
    created_by: str
    as_paths: bool = False
    """Whether its rules were written as `paths`, the form until 2021, and are to be read so."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """The policy that an identity is assigned to, by name."""

    policy: str
    created_at: str
    created_by: str


@dataclass(frozen=True, slots=True)
class Access:
    """Every assignment is to one of the policies, and none is the admin's."""

    admin: str
    policies: Mapping[str, PolicyEntry]
    assignments: Mapping[str, Assignment]
    _decisive: Mapping[str, Policy]
    """Each identity's policy; a look-up costs the same however many there are."""

    @classmethod
    def of(cls, admin: str, policies: Mapping[str, PolicyEntry], assignments: Mapping[str, Assignment]) -> "Access":
        """Assignments to policies that are not there, and of the admin, are left out."""
        kept = {
            identity: assignment
            for identity, assignment in assignments.items()
            if assignment.policy in policies and identity != admin
        }
        decisive = {identity: policies[assignment.policy].policy for identity, assignment in kept.items()}
        return cls(admin, policies, kept, decisive)

    @classmethod
    def configured(cls, config: Config, started_at: str) -> "Access":
        """What the configuration says: made by the admin when the server started."""
        policies = {
            name: PolicyEntry(
                Policy(name, policy.allow, policy.deny, globs_only=config.globs_only),
                started_at,
                config.admin,
                as_paths=config.form in ("2020", "2021"),
            )
            for name, policy in config.policies.items()
        }
        assignments = {
            identity: Assignment(name, started_at, config.admin)
            for name, policy in config.policies.items()
            for identity in policy.identities
        }
        return cls.of(config.admin, policies, assignments)

    def permits(self, identity: str, path: str) -> bool:
        """Whether the identity may call the path: the admin everything, another what its policy allows."""
        if identity == self.admin:
            return True
        policy = self._decisive.get(identity)
        return policy is not None and policy.permits(path)


@dataclass(slots=True)
class RunTimeAccess:
    """What was written since the start, by name; None stands for what was deleted. For the main thread alone.

    `changed` is called after each write, to put the result in force, by `above`.
    """

    changed: Callable[[], None] = lambda: None
    _current: Access = field(default_factory=lambda: Access.of("", {}, {}))
    """What is in force."""
    _policies: dict[str, PolicyEntry | None] = field(default_factory=dict)
    _assignments: dict[str, Assignment | None] = field(default_factory=dict)

    def above(self, configured: Access) -> Access:
        """What is in force from now on: the configuration with what was written."""
        self._current = configured
        if self._policies or self._assignments:
            policies = {**configured.policies, **self._policies}
            assignments = {**configured.assignments, **self._assignments}
            self._current = Access.of(
                configured.admin,
                {name: entry for name, entry in policies.items() if entry is not None},
                {identity: assignment for identity, assignment in assignments.items() if assignment is not None},
            )
        return self._current

    def write_policy(self, entry: PolicyEntry) -> None:
        """A policy of that name is overwritten; its identities keep it."""
        self._policies[entry.policy.name] = entry
        self.changed()

    def delete_policy(self, name: str) -> bool:
        """Whether there was one. Its identities have no policy any more, even if one of that name is written later."""
        if name not in self._current.policies:
            return False
        self._policies[name] = None
        for identity, assignment in self._current.assignments.items():
            if assignment.policy == name:
                self._assignments[identity] = None
        self.changed()
        return True

    def assign(self, identity: str, assignment: Assignment) -> bool:
        """Whether there is that policy. An identity has one policy; assigning another one moves it."""
        if assignment.policy not in self._current.policies:
            return False
        self._assignments[identity] = assignment
        self.changed()
        return True

    def forget(self, identity: str) -> None:
        """Take its policy from an identity; one that has none is left as it is."""
        if identity in self._current.assignments:
            self._assignments[identity] = None
            self.changed()
