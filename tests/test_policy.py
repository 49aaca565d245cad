import pytest
from hypothesis import given
from hypothesis import strategies as st

from keswick import policy
from keswick.policy import PatternError, Policy, check, readings_differ


def allows(rule: str, path: str, *, globs_only: bool = False) -> bool:
    return Policy("p", [rule], [], globs_only=globs_only).permits(path)


def denies(rule: str, path: str) -> bool:
    return not Policy("p", ["*"], [rule]).permits(path)


@pytest.mark.parametrize(
    ("rule", "path", "allowed", "allowed_as_glob", "denied"),
    [
        # one trailing star: a prefix today, one more segment before
        ("/v1/key/create/*", "/v1/key/create/a", True, True, True),
        ("/v1/key/create/*", "/v1/key/create/", True, True, True),
        ("/v1/key/create/*", "/v1/key/create/a/b", True, False, True),
        ("/v1/*", "/v1/key/create/a", True, False, True),
        ("/v1/*", "/v2/key", False, False, False),
        ("*", "/v1/ready", True, False, True),
        # no special character: the path itself
        ("/v1/ready", "/v1/ready", True, True, True),
        ("/v1/ready", "/v1/ready/", False, False, False),
        ("/v1/ready", "/v1/read", False, False, False),
        ("/v1/ready", "/v1/ready\n", False, False, False),
        # any other special character: a glob; a deny rule means the literal path, too
        ("/v1/key/*/app-*", "/v1/key/create/app-1", True, True, True),
        ("/v1/key/*/app-*", "/v1/key/app-1", False, False, False),
        ("/v1/key/*/app-*", "/v1/key/*/app-1/x", False, False, True),
        ("/v1/key/create/x*y", "/v1/key/create/x--y", True, True, True),
        ("/v1/key/create/x*y", "/v1/key/create/x*y", True, True, True),
        ("/v1/key/*/q?[a-c]", "/v1/key/generate/qxa", True, True, True),
        ("/v1/key/*/q?[a-c]", "/v1/key/generate/qxd", False, False, False),
        ("/v1/key/*/q?[a-c]", "/v1/key/generate/q/a", False, False, False),
        ("/v1/key/*/q?[a-c]", "/v1/key/*/q?[a-c]", False, False, True),
        ("/a[^a-z]", "/a1", True, True, True),
        ("/a[^a-z]", "/ab", False, False, False),
        ("/a[^a-z]b", "/a/b", False, False, True),
        ("/a[!a]", "/a!", True, True, True),
        ("/a[!a]", "/ab", False, False, False),
        (r"/a[\]\-]", "/a]", True, True, True),
        (r"/a[\]\-]", "/a-", True, True, True),
        ("/a[z-a]", "/am", False, False, False),
        ("/a[^z-a]", "/am", True, True, True),
        ("/a[&&~|]", "/a|", True, True, True),
        (r"/a\*", "/a*", True, True, True),
        (r"/a\*", "/ab", False, False, False),
        (r"/a\*", "/a\\b", False, False, True),
        ("/a**", "/ab", True, True, True),
        ("/a**", "/a*/x", False, False, True),
        ("/a?", "/aä", True, True, True),
        ("/a?", "/a", False, False, False),
        # nothing
        ("", "", False, False, False),
        ("", "/", False, False, False),
    ],
)
def test_one_rule(rule: str, path: str, allowed: bool, allowed_as_glob: bool, denied: bool) -> None:
    assert allows(rule, path) == allowed
    assert allows(rule, path, globs_only=True) == allowed_as_glob
    assert denies(rule, path) == denied


def test_deny_goes_before_allow_and_nothing_permits_nothing() -> None:
    policy = Policy("app", allow=["/v1/key/*", "/v1/ready"], deny=["/v1/key/delete/*"])

    assert policy.permits("/v1/key/create/a")
    assert policy.permits("/v1/ready")
    assert not policy.permits("/v1/key/delete/a")
    assert not policy.permits("/v1/status")
    assert not Policy("none", [], []).permits("/v1/ready")
    assert not Policy("none", [], ["/v1/status"]).permits("/v1/ready")


def test_a_policy_keeps_its_rules() -> None:
    policy = Policy("app", allow=iter(["/a"]), deny=iter(["/b"]))

    assert (policy.name, policy.allow, policy.deny) == ("app", ("/a",), ("/b",))
    assert repr(policy) == "Policy('app', allow=('/a',), deny=('/b',))"


@pytest.mark.parametrize(
    ("rule", "position"),
    [
        ("/v1/[a", 5),
        ("[]", 2),
        ("[]a]", 2),
        ("[^]a]", 3),
        ("[a-", 1),
        ("[a-]", 4),
        ("[-a]", 2),
        ("[a-c-e]", 5),
        ("/a\\", 3),
        ("[", 1),
        ("[^", 1),
        ("[\\", 1),
        ("[\\]", 1),
    ],
)
def test_a_malformed_rule_is_named_with_its_position(rule: str, position: int) -> None:
    for attempt in (check, readings_differ, lambda rule: Policy("p", [rule], []), lambda rule: Policy("p", [], [rule])):
        with pytest.raises(PatternError) as failure:
            attempt(rule)
        assert f"{rule!r} is malformed at character {position}:" in str(failure.value)


def test_the_readings_of_a_rule() -> None:
    assert readings_differ("/v1/ready") is None
    assert readings_differ("") is None
    assert readings_differ("/v1/*") == (
        "as a prefix it matches every path that begins with '/v1/', as a glob its '*' stops at the next '/'"
    )
    assert readings_differ("/v1/key/*/app-*") == (
        "as a glob its special characters ('*') stand for others, "
        "as a prefix it matches only paths that begin with '/v1/key/*/app-', literally"
    )
    assert readings_differ("/v1/[a-z]?") == (
        "as a glob its special characters ('?', '[') stand for others, "
        "as a prefix it matches only the path '/v1/[a-z]?', literally"
    )


# --- against a matcher that tries everything ----------------------------------------------------------------------

Term = str | None | frozenset[str]
"""A character, None for a star, or the characters that a `?` or a class stands for."""

CHARACTERS = frozenset("ab-/*?[]\\^")
terms: st.SearchStrategy[tuple[str, Term]] = st.one_of(
    st.sampled_from([("a", "a"), ("b", "b"), ("/", "/"), ("-", "-"), ("]", "]"), ("^", "^")]),
    st.sampled_from([("*", None), ("?", CHARACTERS - {"/"})]),
    st.sampled_from(sorted(CHARACTERS)).map(lambda c: ("\\" + c, c)),
    st.tuples(st.booleans(), st.frozensets(st.sampled_from(sorted(CHARACTERS)), min_size=1, max_size=3)).map(
        lambda drawn: (
            "[" + "^" * drawn[0] + "".join("\\" + c for c in sorted(drawn[1])) + "]",
            CHARACTERS - drawn[1] if drawn[0] else drawn[1],
        )
    ),
)
paths = st.text(st.sampled_from(sorted(CHARACTERS)), max_size=8)


def glob(pattern: list[Term], path: str, slash: bool) -> bool:
    if not pattern:
        return not path
    first, *rest = pattern
    if first is None:
        return glob(rest, path, slash) or (path[:1] not in ("", "/") and glob(pattern, path[1:], slash))
    if not path:
        return False
    fits = path[0] in first and (slash or isinstance(first, str) or path[0] != "/")
    return fits and glob(rest, path[1:], slash)


def prefix(rule: str, path: str) -> bool:
    return path.startswith(rule[:-1]) if rule.endswith("*") else path == rule


@given(st.lists(terms, min_size=1, max_size=6), paths)
def test_every_rule_against_every_path(pattern: list[tuple[str, Term]], path: str) -> None:
    rule = "".join(text for text, _ in pattern)
    meaning = [term for _, term in pattern]
    narrow, wide = glob(meaning, path, slash=False), glob(meaning, path, slash=True)
    one_trailing_star = rule.endswith("*") and not set(rule[:-1]) & set("*?[\\")

    assert allows(rule, path, globs_only=True) == narrow
    assert allows(rule, path) == (prefix(rule, path) if one_trailing_star else narrow)
    if narrow or prefix(rule, path):
        assert denies(rule, path)
    elif not wide:
        assert not denies(rule, path)


@given(st.text(st.sampled_from("ab-/*?[]\\^"), max_size=12), paths)
def test_any_text_is_a_rule_or_a_pattern_error(rule: str, path: str) -> None:
    try:
        check(rule)
    except PatternError:
        return
    assert not allows(rule, path, globs_only=True) or denies(rule, path)
    assert policy.glob(rule)(path) == allows(rule, path, globs_only=True) or not rule
    readings_differ(rule)


@given(st.lists(terms, min_size=1, max_size=3), st.lists(terms, min_size=1, max_size=3), paths, st.booleans())
def test_an_explanation_is_what_the_policy_does(
    allow: list[tuple[str, Term]], deny: list[tuple[str, Term]], path: str, globs_only: bool
) -> None:
    allowing, denying = ("".join(text for text, _ in pattern) for pattern in (allow, deny))
    policy = Policy("p", ["/nothing", allowing], ["", denying], globs_only=globs_only)
    permitted, rule = policy.explain(path)
    assert permitted == policy.permits(path)
    if denies(denying, path):
        assert rule == denying
    elif allows(allowing, path, globs_only=globs_only):
        assert rule == allowing
    else:
        assert rule is None


def test_hostile_paths_do_not_take_long() -> None:
    policy = Policy("p", ["/" + "a*" * 50 + "[^b]*c"], ["/" + "*a" * 50 + "[^b]*c"])
    path = "/" + "a" * 16_000

    policy.permits(path)  # with plain backtracking the test would run into its time limit
