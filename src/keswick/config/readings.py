"""Where the two readings of a policy rule differ; `kes server --check` prints it."""

from collections.abc import Collection

from keswick.config.model import Config
from keswick.policy import is_prefix, readings_differ


def differing_rules(config: Config, prefixes: Collection[str] = ()) -> list[str]:
    """A sentence for every rule that the releases before and since October 2023 read differently.

    `prefixes`: the routes that end in a slash.
    """
    return [
        f"policy {name!r}, {kind} rule {rule!r}: {difference}; {_used(kind, rule, config.globs_only)}"
        for name, policy in config.policies.items()
        for kind, rules in (("allow", policy.allow), ("deny", policy.deny))
        for rule in rules
        if (difference := readings_differ(rule)) is not None and not reads_alike(rule, prefixes)
    ]


def reads_alike(rule: str, prefixes: Collection[str]) -> bool:
    """Whether a trailing `*` means the same to all releases: it stands for a name, and names have no slash."""
    return (
        is_prefix(rule)
        and rule.startswith(tuple(prefixes))
        and not rule.startswith("/v1/identity/assign/")  # two names follow
    )


def _used(kind: str, rule: str, globs_only: bool) -> str:
    if kind == "deny":
        return "what either matches is refused"
    return "it is read as a prefix" if is_prefix(rule) and not globs_only else "it is read as a glob"
