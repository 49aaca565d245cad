"""Policies: which paths an identity may ask for.

A rule is matched against the decoded path of a request. Two grammars are in use:

- *glob*, of all releases before October 2023: `*` and `?` stand for anything but `/`, `[a-z]` and `[^a-z]` for one
  character, `\\c` for the character c itself;
- *prefix*, of all releases since: one trailing `*` stands for any rest, across `/`; everything else stands for itself.

A rule of either time must go on protecting what it protected, so a deny rule refuses what either grammar matches. An
allow rule is read in one way: as a prefix when one trailing `*` is all it has of the glob's special characters, as a
glob when it has others.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

_SPECIAL = frozenset("*?[\\")
_NOTHING = "(?!)"


_REMEMBERED = 1024
"""Decisions of one policy that are remembered, of paths of at most so many characters:"""
_REMEMBERED_LENGTH = 300


class PatternError(ValueError):
    """A rule that is not a pattern. The text names the rule and the position."""


class Policy:
    """The rules of one policy, ready to be asked. Immutable. Raises PatternError for a malformed rule.

    With `globs_only` allow rules are globs without exception, as servers before October 2023 read them.
    """

    __slots__ = ("_allowed", "_decisions", "_denials", "_denied", "allow", "deny", "globs_only", "name")

    def __init__(self, name: str, allow: Iterable[str], deny: Iterable[str], *, globs_only: bool = False) -> None:
        self.name: Final = name
        self.allow: Final = tuple(allow)
        self.deny: Final = tuple(deny)
        self.globs_only: Final = globs_only
        self._allowed: Final = _union(_allow_regex(rule, globs_only) for rule in self.allow if rule).match
        self._denied: Final = _union(_deny_regex(rule) for rule in self.deny if rule).match
        self._decisions: Final[dict[str, bool]] = {}
        self._denials: Final[dict[str, bool]] = {}

    def permits(self, path: str) -> bool:
        """Whether a request for the decoded `path` is permitted: not denied, and allowed."""
        decision = self._decisions.get(path)
        return self._decide(path) if decision is None else decision

    def denies(self, path: str) -> bool:
        """Whether a rule denies the decoded `path`. One that no rule speaks of is not permitted, and not denied."""
        denial = self._denials.get(path)
        return self._remember(self._denials, path, self._denied(path) is not None) if denial is None else denial

    def explain(self, path: str) -> "Decision":
        """What `permits` says of the decoded `path`, and why."""
        for rule in self.deny:
            if rule and re.match(_deny_regex(rule), path):
                return Decision(False, rule)
        for rule in self.allow:
            if rule and re.match(_allow_regex(rule, self.globs_only), path):
                return Decision(True, rule)
        return Decision(False, None)

    def _decide(self, path: str) -> bool:
        permitted = self._denied(path) is None and self._allowed(path) is not None
        return self._remember(self._decisions, path, permitted)

    @staticmethod
    def _remember(findings: dict[str, bool], path: str, finding: bool) -> bool:
        """Callers use few paths again and again, so what was found is remembered, within bounds."""
        if len(path) <= _REMEMBERED_LENGTH:
            if len(findings) >= _REMEMBERED:
                findings.clear()
            findings[path] = finding
        return finding

    def __repr__(self) -> str:
        return f"Policy({self.name!r}, allow={self.allow!r}, deny={self.deny!r})"


class Decision(NamedTuple):
    permitted: bool
    rule: str | None
    """The first rule that decided, one to deny if there is any; None when no rule matches, which permits nothing."""


def check(rule: str) -> None:
    """Raise PatternError if `rule` is not a pattern."""
    _glob_regex(rule)


def glob(pattern: str) -> Callable[[str], bool]:
    """A test whether a text matches `pattern`, read as a glob. Raises PatternError."""
    match = re.compile(_glob_regex(pattern)).match
    return lambda text: match(text) is not None


def is_prefix(rule: str) -> bool:
    """Whether an allow rule is read as a prefix: one trailing `*` is all it has of special characters."""
    return rule.endswith("*") and _specials(rule) == "*"


def readings_differ(rule: str) -> str | None:
    """A sentence that tells what each grammar matches, if they differ for this rule. Raises PatternError."""
    check(rule)
    special = _specials(rule)
    if not special:
        return None
    if is_prefix(rule):
        return (
            f"as a prefix it matches every path that begins with {rule[:-1]!r}, as a glob its '*' stops at the next '/'"
        )
    literal = f"paths that begin with {rule[:-1]!r}" if rule.endswith("*") else f"the path {rule!r}"
    named = ", ".join(f"'{character}'" for character in sorted(set(special)))
    return (
        f"as a glob its special characters ({named}) stand for others, as a prefix it matches only {literal}, literally"
    )


def _specials(rule: str) -> str:
    return "".join(character for character in rule if character in _SPECIAL)


def _union(regexes: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(dict.fromkeys(regexes) or [_NOTHING]))


def _allow_regex(rule: str, globs_only: bool) -> str:
    if is_prefix(rule) and not globs_only:
        return _prefix_regex(rule)
    return _glob_regex(rule)


def _deny_regex(rule: str) -> str:
    # The releases that read globs let a class stand for '/', against their documentation: a deny rule covers that too.
    readings = (_prefix_regex(rule), _glob_regex(rule), _glob_regex(rule, class_matches_slash=True))
    return "|".join(dict.fromkeys(readings))


def _prefix_regex(rule: str) -> str:
    return re.escape(rule[:-1]) if rule.endswith("*") else re.escape(rule) + r"\Z"


def _glob_regex(rule: str, *, class_matches_slash: bool = False) -> str:
    """The glob as a regular expression that takes time in proportion to rule and path, however hostile the path."""
    chunks = [""]  # what stands between the stars; each matches texts of one length only
    position = 0
    while position < len(rule):
        character = rule[position]
        position += 1
        if character == "*":
            chunks.append("")
        elif character == "?":
            chunks[-1] += "[^/]"
        elif character == "[":
            regex, position = _class_regex(rule, position)
            chunks[-1] += regex if class_matches_slash else "(?!/)" + regex
        else:
            if character == "\\":
                if position == len(rule):
                    raise _malformed(rule, position, "there is no character after the backslash")
                character = rule[position]
                position += 1
            chunks[-1] += re.escape(character)
    if len(chunks) == 1:
        return chunks[0] + r"\Z"
    first, *middle, last = chunks
    # A chunk is matched at its first place and never moved again (an atomic group): if a later place would do, the
    # first one does as well.
    return first + "".join(f"(?>[^/]*?{chunk})" for chunk in middle if chunk) + "[^/]*" + last + r"\Z"


def _class_regex(rule: str, position: int) -> tuple[str, int]:
    """The class whose `[` stands before `position`, and where the rule goes on behind it."""
    start = position
    negated = rule.startswith("^", position)
    position += negated
    ranges = ""
    first = position
    while position == first or not rule.startswith("]", position):
        low, position = _class_character(rule, position, start)
        high = low
        if rule.startswith("-", position):
            high, position = _class_character(rule, position + 1, start)
        if low <= high:
            ranges += f"{re.escape(low)}-{re.escape(high)}"
    position += 1
    if not ranges:  # such as [z-a], which nothing fits
        return (r"[\s\S]" if negated else _NOTHING), position
    return f"[{'^' if negated else ''}{ranges}]", position


def _class_character(rule: str, position: int, start: int) -> tuple[str, int]:
    character = rule[position : position + 1]
    if character in ("]", "-"):
        raise _malformed(rule, position + 1, f"{character!r} cannot stand here in a class, write '\\{character}'")
    if character == "\\":
        position += 1
        character = rule[position : position + 1]
    if not character:
        raise _malformed(
            rule, start, "the class that opens with '[' is not closed, write '\\[' for the character itself"
        )
    return character, position + 1


def _malformed(rule: str, position: int, reason: str) -> PatternError:
    return PatternError(f"the rule {rule!r} is malformed at character {position}: {reason}")
