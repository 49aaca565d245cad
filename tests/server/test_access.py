"""Policies and assignments of the configuration, and above them those written at run time."""

import pytest

from keswick.config import Config, Policy
from keswick.keystore import MEMORY
from keswick.policy import Policy as Rules
from keswick.server import access as module
from keswick.server.access import Access, Assignment, PolicyEntry, RunTimeAccess, TooMuch

STARTED = "2026-01-02T03:04:05Z"


def configured(admin: str = "admin", **policies: Policy) -> Access:
    return Access.configured(Config(admin=admin, keystore=MEMORY, tls=None, policies=policies), STARTED)


def entry(name: str, *allow: str) -> PolicyEntry:
    return PolicyEntry(Rules(name, allow, ()), STARTED, "writer")


def in_force(base: Access) -> tuple[RunTimeAccess, Access]:
    """What is written over `base` counts at once, as in a server."""
    written = RunTimeAccess()

    def changed() -> None:
        written.above(base)

    written.changed = changed
    changed()
    return written, base


APP = Policy(allow=("/v1/key/create/*",), identities=("ann", "bob"))


def test_the_admin_may_everything_and_others_what_their_policy_allows() -> None:
    access = configured(app=APP)
    assert access.permits("admin", "/v1/anything")
    assert access.permits("ann", "/v1/key/create/x")
    assert not access.permits("ann", "/v1/key/delete/x")
    assert not access.permits("stranger", "/v1/key/create/x")
    assert (access.assignments["ann"].created_at, access.assignments["ann"].created_by) == (STARTED, "admin")


def test_a_written_policy_goes_before_the_configured_one_and_keeps_its_identities() -> None:
    written = RunTimeAccess()
    base = configured(app=APP)
    assert written.above(base) is base
    written.write_policy(entry("app", "/v1/status"))
    access = written.above(base)
    assert access.permits("ann", "/v1/status")
    assert not access.permits("ann", "/v1/key/create/x")
    assert base.permits("ann", "/v1/key/create/x")  # what was read before stays as it was


def test_a_deleted_policy_frees_its_identities_even_when_it_comes_back() -> None:
    written = RunTimeAccess()
    base = configured(app=APP)
    written.above(base)
    assert written.delete_policy("app")
    written.above(base)
    assert not written.delete_policy("app")
    written.write_policy(entry("app", "/v1/*"))
    access = written.above(base)
    assert not access.permits("ann", "/v1/status")
    assert list(access.assignments) == []


def test_assigning_moves_an_identity_and_forgetting_takes_its_policy() -> None:
    written = RunTimeAccess()
    base = configured(app=APP, other=Policy(allow=("/v1/status",)))
    written.above(base)
    assert not written.assign("ann", Assignment("nothing", STARTED, "writer"))
    assert written.assign("ann", Assignment("other", STARTED, "writer"))
    assert written.above(base).permits("ann", "/v1/status")
    written.forget("ann")
    written.forget("bob")
    assert not written.above(base).assignments


def test_what_was_written_outlives_a_reload_and_never_binds_the_new_admin() -> None:
    written = RunTimeAccess()
    written.above(configured(app=APP))
    written.write_policy(entry("more", "/v1/status"))
    written.above(configured(app=APP))
    assert written.assign("carl", Assignment("more", STARTED, "writer"))
    reloaded = written.above(configured(admin="bob", app=APP))
    assert reloaded.permits("carl", "/v1/status")
    assert "bob" not in reloaded.assignments
    assert reloaded.permits("bob", "/v1/anything")


def test_what_is_not_there_leaves_no_trace_when_it_is_taken_away() -> None:
    changes: list[str] = []
    written = RunTimeAccess(changed=lambda: changes.append("changed"))
    base = configured()
    written.above(base)
    written.forget("nobody")
    assert not written.delete_policy("nothing")
    assert changes == []
    assert written.above(base) is base


def test_what_is_deleted_leaves_a_mark_only_where_the_configuration_has_it() -> None:
    written, base = in_force(configured(app=APP))
    for number in range(100):
        written.write_policy(entry(f"p{number}"))
        written.assign(f"i{number}", Assignment(f"p{number}", STARTED, "writer"))
        written.delete_policy(f"p{number}")
    assert written.above(base) is base  # as if nothing had been written
    written.delete_policy("app")
    assert not written.above(base).policies


def test_what_may_be_written_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_ENTRIES", 3)
    monkeypatch.setattr(module, "MOST_CHARACTERS", 20)
    written, base = in_force(configured(app=APP))
    written.write_policy(entry("p", "/v1/status"))
    with pytest.raises(TooMuch):
        written.write_policy(entry("q", "/v1/metrics"))
    written.write_policy(entry("p", "/v1/metrics"))  # in the place of another, it counts alone
    written.assign("carl", Assignment("p", STARTED, "writer"))
    written.assign("dora", Assignment("p", STARTED, "writer"))
    with pytest.raises(TooMuch):
        written.assign("emil", Assignment("p", STARTED, "writer"))
    written.assign("dora", Assignment("app", STARTED, "writer"))
    written.forget("carl")
    written.assign("emil", Assignment("p", STARTED, "writer"))
    assert set(written.above(base).assignments) == {"ann", "bob", "dora", "emil"}


def test_a_denial_is_told_from_what_is_not_allowed() -> None:
    access = configured(app=Policy(allow=("/v1/key/*",), deny=("/v1/key/delete/*",), identities=("ann",)))
    assert access.denies("ann", "/v1/key/delete/x")
    assert not access.denies("ann", "/v1/policy/read/x")
    assert not access.denies("admin", "/v1/key/delete/x")
    assert not access.denies("stranger", "/v1/key/delete/x")
