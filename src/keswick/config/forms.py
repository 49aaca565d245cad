"""Which form a file has, told by its keys. Where two forms are mixed it is none, and the error names a key of each."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from keswick.config import form2020, form2021, present, transitional
from keswick.config.document import Section, Source, is_null
from keswick.config.model import PRESENT, Config, ConfigError
from keswick.config.reference import reference
from keswick.config.translation import Form, Path, Tree, aligned, path
from keswick.keystore import table


def _present_keys(stores: tuple[str, ...]) -> dict[Path, Path]:
    keys = {today: today for today in transitional.WITH_RULES.keys.values()}  # those without a meaning, too
    for section, described in reference(stores).items():
        around = path(section) if section else ()
        for key in described:
            whole = path(section.removesuffix("[]")) if section.endswith("[]") else (*around, *path(key.name))
            keys[whole] = whole
    return keys


_OLD: tuple[Form, ...] = (form2020.FORM, form2021.FORM, transitional.WITH_PATHS, transitional.WITH_RULES)


@cache
def _forms(stores: tuple[str, ...]) -> tuple[Form, ...]:
    """All forms, oldest first. The table of the present form serves to recognise it, for files that name no other key
    stores than these; its reader takes the document as it is."""
    return (*_OLD, Form(PRESENT, "", "today", _present_keys(stores)))


def _named_stores(document: Section) -> tuple[str, ...]:
    """The kinds of key stores that may stand in a document: to know the settings of one takes reading its module."""
    if not document.is_section("keystore"):
        return ()
    section = document.section("keystore")
    return tuple(kind for kind in table.CONFIGURABLE if kind.partition(".")[0] in section)


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of the document that some forms have and others have not."""

    key: str
    pattern: Path
    names: tuple[str, ...]
    """What stands in the place of `*` in the pattern."""
    line: int | None
    forms: tuple[Form, ...]
    is_certain: bool
    """Not so a section in which no key is known, and what is a section in one place and none in the other."""


def recognise(document: Section) -> Form:
    """The newest form that has all the keys of `document`, but for those that none has. Raises ConfigError."""
    forms = _forms(_named_stores(document))
    possible = forms[:1] if document.source.is_toml else forms
    seen: list[_Key] = []
    keys = list(_keys(document, [(form, form.tree) for form in forms]))
    for key in sorted(keys, key=lambda key: not key.is_certain):
        remaining = tuple(form for form in possible if form in key.forms)
        if not remaining and key.is_certain:
            raise _mixed(document.source, key, seen, forms)
        possible = remaining or possible
        seen.append(key)
    return possible[-1]


def read(document: Section, form: Form, apis: Mapping[str, bool], by_flags: Collection[str]) -> Config:
    """The configuration in a document that has this form. Raises ConfigError."""
    if form.name == PRESENT:
        return present.read(document, apis, by_flags=by_flags)
    return present.read(form.translate(document), apis, form.name, form.dialect, by_flags)


def _keys(section: Section, trees: Sequence[tuple[Form, Tree]], around: Path = (), chosen: Path = ()) -> Iterator[_Key]:
    """The keys that stand in one of the `trees`; sections only when no such key stands in them."""
    for key, entry in section.entries().items():
        if is_null(entry.node):
            continue
        branches = [(form, name, tree[name]) for form, tree in trees for name in (key, "*") if name in tree]
        is_section = section.is_section(key)
        fitting = [branch for branch in branches if (branch[2] is not None) == is_section]
        if not branches:
            continue
        pattern = (*around, branches[0][1])
        names = (*chosen, key) if pattern[-1] == "*" else chosen
        inner: list[_Key] = []
        if is_section:
            deeper = [(form, tree) for form, _, tree in fitting if tree is not None]
            inner = list(_keys(section.section(key), deeper, pattern, names))
        forms = tuple(form for form, _, _ in fitting or branches)
        yield from inner or [_Key(entry.key, pattern, names, entry.line, forms, bool(fitting) and not is_section)]


def _mixed(source: Source, late: _Key, before: Sequence[_Key], forms: Sequence[Form]) -> ConfigError:
    if source.is_toml:
        return source.error(
            None, f"{late.key!r} belongs to {_named(late.forms)}, but this is TOML, the form of 2020; write YAML"
        )
    early = next((key for key in before if not set(key.forms) & set(late.forms)), before[0])
    older, newer = sorted((early, late), key=lambda key: forms.index(key.forms[-1]))
    today = _called(older.pattern, older.forms[0], newer.forms[-1])
    names = iter(older.names)
    instead = ".".join(next(names) if name == "*" else name for name in today or ())
    advice = f"write {instead!r} in place of {older.key!r}" if instead else "keep to one form"
    return source.error(
        late.line,
        f"{late.key!r} belongs to {_named(late.forms)}, but {early.key!r} in line {early.line} to "
        f"{_named(early.forms)}; {advice}",
    )


def _named(forms: Sequence[Form]) -> str:
    *most, last = (form.label for form in forms)
    return f"the forms of {', '.join(most)} and {last}" if most else f"the form of {last}"


def _called(pattern: Path, form: Form, other: Form) -> Path | None:
    """How a key or section of one form is written in another, if it is there."""
    today = {old: new for row in form.keys.items() for old, new in aligned(*row)}
    return {new: old for row in other.keys.items() for old, new in aligned(*row)}.get(today.get(pattern, ()))
