"""What an identity may do, and which rule of its policy says so."""

from collections.abc import Collection, Iterable, Iterator

from keswick.doctor import Finding, failed, ok
from keswick.policy import Policy

FOR_ALL = frozenset({"/version", "/v1/identity/self/describe"})
"""The paths that no policy is asked about."""

_ANY_NAME = "keswick-doctor-any-name"  # stands for a name that no rule speaks of


def of_path(who: str, policy: Policy, path: str, for_all: Collection[str] = FOR_ALL) -> Finding:
    """Whether `who` may ask for the decoded path."""
    if path in for_all:
        return ok(f"{who} may call '{path}', as all clients may")
    permitted, rule = policy.explain(path)
    if permitted:
        return ok(f"{who} may call '{path}': the policy '{policy.name}' allows '{rule}'")
    if rule is not None:
        return failed(
            f"{who} may not call '{path}': the policy '{policy.name}' denies '{rule}', which goes before allow"
        )
    return failed(
        f"{who} may not call '{path}': no rule of the policy '{policy.name}' matches it; allow the path there"
    )


def of_routes(who: str, policy: Policy, routes: Iterable[str], for_all: Collection[str] = FOR_ALL) -> Iterator[Finding]:
    """What `who` may ask for among the routes. One that ends in a slash is a prefix, and a name follows."""
    refused = []
    for route in routes:
        if route in for_all:
            continue
        permitted, rule = policy.explain(route + _ANY_NAME if route.endswith("/") else route)
        some = [other for other in policy.allow if _speaks_of(other, route)]
        if permitted:
            but = [other for other in policy.deny if _speaks_of(other, route)]
            yield ok(f"{who} may call {_shown(route)}, by '{rule}'" + (f", but not {_listed(but)}" if but else ""))
        elif some:
            yield ok(f"{who} may call {_shown(route)} for some names, by {_listed(some)}")
        else:
            refused.append(_shown(route))
    if refused:
        yield ok(f"{who} may not call {', '.join(refused)}")


def matches_no_route(rule: str, routes: Iterable[str]) -> bool:
    """Whether there is no path that the rule could be about, as far as it goes before its first special character."""
    begin = _literal(rule)
    return not any(
        route.startswith(begin) or (route.endswith("/") and begin.startswith(route)) or begin == route
        for route in routes
    )


def _speaks_of(rule: str, route: str) -> bool:
    """Whether the rule is about names behind a prefix."""
    return route.endswith("/") and _literal(rule).startswith(route)


def _literal(rule: str) -> str:
    for place, character in enumerate(rule):
        if character in "*?[\\":
            return rule[:place]
    return rule


def _shown(route: str) -> str:
    return f"{route}NAME" if route.endswith("/") else route


def _listed(rules: Iterable[str]) -> str:
    return ", ".join(f"'{rule}'" for rule in rules)
