"""Older forms of the configuration in the shape of the present one, by a table: how a key is written, and what it is
called today.

What errors say of a key stays as it is written in the file, so that an operator finds it there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from keswick.config.document import Entry, Section, is_null

Path: TypeAlias = tuple[str, ...]
"""The names of a key and of the sections around it; in tables `*` stands for a name that the operator chooses."""
Tree: TypeAlias = "dict[str, Tree | None]"
"""Keys by section; None behind a key that is no section."""


@dataclass(frozen=True, eq=False)
class Form:
    """What the files of some releases look like."""

    name: str
    """As `Config.form` has it."""
    dialect: str
    """Of the releases that read it."""
    label: str
    """What errors call it, behind `the form of`."""
    keys: Mapping[Path, Path]
    """What each key is called today."""
    finish: Callable[[Section], Section] = lambda document: document
    """What is not a matter of names, when they are those of today."""
    tree: Tree = field(init=False, repr=False)
    """The keys by section."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tree", _tree(self.keys))

    def translate(self, document: Section) -> Section:
        """The document in the shape of the present form. Raises ConfigError for keys that this form does not have."""
        return self.finish(_Translation(self, document).result())


def table(rows: Mapping[str, str]) -> dict[Path, Path]:
    """The table of a form, from rows that name keys with dots."""
    return {path(written): path(today) for written, today in rows.items()}


def path(text: str) -> Path:
    return tuple(text.split("."))


def aligned(written: Path, today: Path) -> Iterator[tuple[Path, Path]]:
    """A key and the sections around it, innermost first, each with what it is called today, as far as there is one."""
    while written and today:
        yield written, today
        written, today = written[:-1], today[:-1]


def _tree(keys: Mapping[Path, Path]) -> Tree:
    tree: Tree = {}
    for key in keys:
        branch = tree
        for name in key[:-1]:
            inner = branch.setdefault(name, {})
            assert inner is not None, key
            branch = inner
        branch[key[-1]] = None
    return tree


class _Translation:
    """One document on its way: the sections of today, which fill while those of the file are walked."""

    def __init__(self, form: Form, document: Section) -> None:
        self._form = form
        self._document = document
        self._sections: dict[Path, dict[str, Entry | None]] = {(): {}}
        """The entries of each; None stands for a section, which has entries of its own."""
        self._origins: dict[Path, Section] = {}
        """Which section of the file each one was."""
        self._written: dict[Path, dict[str, str]] = {}
        """How their keys are called in the file."""
        for written, today in form.keys.items():
            if len(written) == len(today):
                for old, new in aligned(written, today):
                    self._written.setdefault(new[:-1], {})[new[-1]] = old[-1]

    def result(self) -> Section:
        self._walk(self._form.tree, (self._document,), (), ())
        return self._assembled(())

    def _walk(self, tree: Tree, around: tuple[Section, ...], pattern: Path, chosen: tuple[str, ...]) -> None:
        """`around`: the section to walk, behind those that it stands in; `pattern`: its path in the table; `chosen`:
        the names in the place of `*`."""
        section = around[-1]
        if "*" not in tree:
            section.only(*tree)
        for key, entry in section.entries().items():
            name = "*" if "*" in tree else key
            names = (*chosen, key) if name == "*" else chosen
            branch = tree[name]
            if branch is None:
                self._place(entry, (*pattern, name), names, around)
                continue
            inner = section.section(key)
            if name == "*":  # it is there even if nothing is in it
                self._open((*pattern, key), (*around, inner), entry.line)
            self._walk(branch, (*around, inner), (*pattern, name), names)

    def _place(self, entry: Entry, pattern: Path, chosen: tuple[str, ...], around: tuple[Section, ...]) -> None:
        if is_null(entry.node):
            return
        names = iter(chosen)
        *sections, last = (next(names) if name == "*" else name for name in self._form.keys[pattern])
        entries = self._open(tuple(sections), around, entry.line)
        if (other := entries.get(last)) is not None:
            raise around[-1].error_at(pattern[-1], f"{entry.key!r} is the same as {other.key!r}; keep one of them")
        entries[last] = entry

    def _open(self, today: Path, around: tuple[Section, ...], line: int | None) -> dict[str, Entry | None]:
        """The entries of the section `today`, which was the last of the sections `around`."""
        for depth, name in enumerate(today):
            section = today[: depth + 1]
            self._sections.setdefault(section, {})
            self._sections[today[:depth]].setdefault(name, None)
            outwards = len(around) - len(today) + depth
            origin = around[outwards] if outwards > 0 else Section(self._document.source, ".".join(section), line)
            self._origins.setdefault(section, origin)
        return self._sections[today]

    def _assembled(self, today: Path) -> Section:
        origin = self._origins.get(today, self._document)
        entries = {}
        for name, entry in self._sections[today].items():
            if entry is None:
                inner = self._assembled((*today, name))
                entry = Entry(inner.key, inner.line, inner)
            entries[name] = entry
        return Section(origin.source, origin.key, origin.line, entries, self._written.get(today))
