"""Who may do what: the policies and assignments of the configuration, and above them those written at run time.

What is written at run time is kept in memory only, goes before the configuration, and outlives its reload; a restart
forgets it. Only the main thread writes, one call after the other; every other thread reads one immutable `Access`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from keswick.config import Config
from keswick.policy import Policy

MOST_ENTRIES = 10_000
"""Policies and assignments that may be written at run time: each write makes all of them anew."""
LONGEST_POLICY = 1 << 17
"""Characters in the rules of a policy that is written at run time; it takes two seconds to compile the worst."""
MOST_CHARACTERS = 1 << 20
"""In all of them; compiled, a rule takes some fifty times its length."""


Entry = TypeVar("Entry")


class TooMuch(Exception):
    """No more may be written at run time."""


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
                as_paths=config.dialect == "2021",
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

    def denies(self, identity: str, path: str) -> bool:
        """Whether a rule of the identity's policy denies it the path. Nothing is denied to the admin."""
        policy = self._decisive.get(identity)
        return policy is not None and policy.denies(path)


@dataclass(slots=True)
class RunTimeAccess:
    """What was written since the start, by name; None stands for what the configuration has and was deleted. For the
    main thread alone.

    `changed` is called after each write, to put the result in force, by `above`. What is written is bounded, for
    whoever may write policies should not be able to fill the memory: writes raise TooMuch.
    """

    changed: Callable[[], None] = lambda: None
    _configured: Access = field(default_factory=lambda: Access.of("", {}, {}))
    _current: Access = field(default_factory=lambda: Access.of("", {}, {}))
    """What is in force."""
    _policies: dict[str, PolicyEntry | None] = field(default_factory=dict)
    _assignments: dict[str, Assignment | None] = field(default_factory=dict)

    def above(self, configured: Access) -> Access:
        """What is in force from now on: the configuration with what was written."""
        self._configured = self._current = configured
        if self._policies or self._assignments:
            policies = {**configured.policies, **self._policies}
            assignments = {**configured.assignments, **self._assignments}
            self._current = Access.of(
                configured.admin,
                {name: entry for name, entry in policies.items() if entry is not None},
                {identity: assignment for identity, assignment in assignments.items() if assignment is not None},
            )
        return self._current

    def clear(self) -> None:
        """Forget everything, as a restart does."""
        self._policies.clear()
        self._assignments.clear()

    def write_policy(self, entry: PolicyEntry) -> None:
        """A policy of that name is overwritten; its identities keep it."""
        name = entry.policy.name
        others = [other for other in self._policies.values() if other is not None and other.policy.name != name]
        if sum(map(_characters, (entry, *others))) > MOST_CHARACTERS:
            raise TooMuch
        self._make_room(self._policies.get(name))
        self._policies[name] = entry
        self.changed()

    def delete_policy(self, name: str) -> bool:
        """Whether there was one. Its identities have no policy any more, even if one of that name is written later."""
        if name not in self._current.policies:
            return False
        _delete(self._policies, name, self._configured.policies)
        for identity, assignment in self._current.assignments.items():
            if assignment.policy == name:
                _delete(self._assignments, identity, self._configured.assignments)
        self.changed()
        return True

    def assign(self, identity: str, assignment: Assignment) -> bool:
        """Whether there is that policy. An identity has one policy; assigning another one moves it."""
        if assignment.policy not in self._current.policies:
            return False
        self._make_room(self._assignments.get(identity))
        self._assignments[identity] = assignment
        self.changed()
        return True

    def forget(self, identity: str) -> None:
        """Take its policy from an identity; one that has none is left as it is."""
        if identity in self._current.assignments:
            _delete(self._assignments, identity, self._configured.assignments)
            self.changed()

    def _make_room(self, overwritten: PolicyEntry | Assignment | None) -> None:
        written = (*self._policies.values(), *self._assignments.values())
        if overwritten is None and sum(entry is not None for entry in written) >= MOST_ENTRIES:
            raise TooMuch


def _characters(entry: PolicyEntry) -> int:
    return sum(map(len, (*entry.policy.allow, *entry.policy.deny)))


def _delete(written: dict[str, Entry | None], name: str, configured: Mapping[str, Entry]) -> None:
    """What the configuration has needs a mark that it is gone; the rest can be forgotten."""
    if name in configured:
        written[name] = None
    else:
        written.pop(name, None)
