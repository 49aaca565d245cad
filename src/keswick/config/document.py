"""A strict reader of YAML (and of TOML, once `toml` has made the same nodes of it), in which a mistake cannot hide.

A document is walked from its top section by the keys that a reader knows, so what it does not know is an error, never
ignored. Scalars are taken as the text they are written in: `on`, `0777` and `1e3` are no booleans and numbers here.
Every error names file, line and key; of TOML the key alone. It shows what was written only where that cannot be a
secret, and never what came from the environment.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import yaml

from keswick.config.model import ConfigError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LARGEST = 32 << 20  # bytes of a file; a hundred thousand identities take 7 MB
DEEPEST = 32  # levels of sections and lists in each other
_MOST_MERGES = 100  # `<<` keys of a file, so that a few nested lines cannot stand for millions
_NULLS = frozenset(["", "~", "null", "Null", "NULL"])
_TAG = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(_TAG + name for name in ("str", "null", "bool", "int", "float", "timestamp", "merge", "value"))


class UnsetVariable(ConfigError):
    """A value stands for a variable of the environment that is not set."""


@dataclass(slots=True)
class Source:
    """The file that is read, and what was noticed on the way."""

    file: str
    warnings: list[str] = field(default_factory=list)
    merges: int = 0
    is_toml: bool = False

    def error(self, line: int | None, text: str) -> ConfigError:
        return ConfigError(f"{self.file}: {text}" if line is None else f"{self.file}: line {line}: {text}")

    def warn(self, line: int | None, text: str) -> None:
        self.warnings.append(str(self.error(line, text)))


def read(path: str | os.PathLike[str]) -> tuple[Source, str]:
    """The text of a file. Raises ConfigError when it cannot be had."""
    source = Source(os.fspath(path))
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise source.error(None, "there is no such file") from None
    except IsADirectoryError:
        raise source.error(None, "this is a folder, not a file") from None
    except PermissionError:
        raise source.error(None, "no permission to read this file") from None
    except (OSError, ValueError) as failure:
        raise source.error(None, f"the file cannot be read: {getattr(failure, 'strerror', None) or failure}") from None
    if len(data) > _LARGEST:
        raise source.error(None, f"the file is larger than {_LARGEST} bytes")
    try:
        return source, data.decode("utf-8-sig")
    except UnicodeDecodeError as failure:
        line = data.count(b"\n", 0, failure.start) + 1
        raise source.error(line, "the file is not UTF-8 text") from None


def parse(source: Source, text: str) -> "Section":
    """The top section of the first document in `text`."""
    try:
        _check_events(source, text)
        top = next(yaml.compose_all(text, Loader=LOADER), None)
    except yaml.YAMLError as failure:
        raise _syntax_error(source, text, failure) from None
    if top is None or is_null(top):
        raise source.error(None, "the file is empty")
    if not isinstance(top, yaml.MappingNode):
        example = "lines such as 'address: 0.0.0.0:7373' are expected"
        raise source.error(line_of(top), f"this is not a configuration: {example}")
    return Section.of(source, "", line_of(top), top)


def _check_events(source: Source, text: str) -> None:
    """Look at the first document before nodes are made of it, which takes stack for every level."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=LOADER):
        line = line_of(event)
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents == 2:
                source.warn(line, "only the first document of the file is read; what begins here is ignored")
                return
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise _too_deep(source, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


@dataclass(frozen=True, slots=True)
class Value:
    """A scalar: its text, and where it stands."""

    source: Source = field(repr=False)
    key: str
    line: int | None
    text: str = field(repr=False)
    variable: str | None = None
    """The environment variable that the text came from."""

    def error(self, text: str) -> ConfigError:
        return self.source.error(self.line, text)

    @property
    def shown(self) -> str:
        """The text in quotes, or where it came from if that was the environment. Not for secrets."""
        if self.variable is not None:
            return f"the value of the environment variable {self.variable!r}"
        return repr(shortened(self.text))


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands behind a key."""

    key: str
    """As it is written in the file, with dots."""
    line: int | None
    node: "yaml.Node | Section"
    """A section where one form was put in the shape of another."""


class Section:
    """A mapping with keys of text. A key without a value (`key:` or `key: null`) counts as absent."""

    def __init__(
        self,
        source: Source,
        key: str,
        line: int | None,
        entries: Mapping[str, Entry] | None = None,
        written: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self.key = key
        """With dots, such as `tls.proxy`; empty at the top."""
        self.line = line
        self._entries = dict(entries or {})
        self._written = dict(written or {})
        """How the keys of this section are called in the file, where that differs."""

    @classmethod
    def of(cls, source: Source, key: str, line: int | None, node: yaml.MappingNode) -> "Section":
        section = cls(source, key, line)
        section._entries = section._read(node)
        return section

    def with_entries(self, entries: Mapping[str, Entry]) -> "Section":
        """The same section with other entries."""
        return Section(self.source, self.key, self.line, entries, self._written)

    @property
    def name(self) -> str:
        return repr(self.key) if self.key else "the configuration"

    def error(self, text: str) -> ConfigError:
        return self.source.error(self.line if self.key else None, text)

    def error_at(self, key: str, text: str) -> ConfigError:
        """An error at the line of `key`."""
        return self.source.error(self._entries[key].line, text)

    def warn_at(self, key: str, text: str) -> None:
        self.source.warn(self._entries[key].line, text)

    def entries(self) -> Mapping[str, Entry]:
        """All entries by key, those without a value too."""
        return self._entries

    def __iter__(self) -> Iterator[str]:
        """All keys as written, those without a value too."""
        return iter(self._entries)

    def __contains__(self, key: str) -> bool:
        return key in self._entries and not is_null(self._entries[key].node)

    def is_blank(self, key: str) -> bool:
        """Whether nothing is set: `key` is absent, empty, or taken from a variable of the environment that is empty."""
        entry = self._entries.get(key)
        if entry is None or is_null(entry.node):
            return True
        if not isinstance(entry.node, yaml.ScalarNode):
            return False
        variable = referenced(entry.node.value)
        return not (entry.node.value if variable is None else os.environ.get(variable, variable))

    def only(self, *known: str, meaningless: Collection[str] = ()) -> "Section":
        """Refuse every key that is not known; `meaningless` ones, of older releases, have a warning only."""
        for key, entry in self._entries.items():
            if key in known:
                continue
            if key in meaningless:
                self.warn_at(key, f"{entry.key!r} has no meaning any more and is ignored")
            else:
                word, colon, _ = key.partition(":")  # what follows a colon without a space may be a secret
                near = nearest(word, known) or f"; it has {', '.join(sorted(known))}"
                hint = "; write a space after its ':'" if colon else near
                raise self.source.error(entry.line, f"unknown key {shortened(word)!r} in {self.name}{hint}")
        return self

    def is_section(self, key: str) -> bool:
        return key in self._entries and isinstance(self._entries[key].node, (yaml.MappingNode, Section))

    def section(self, key: str) -> "Section":
        """The section under `key`; an empty one if it is absent."""
        entry = self._entries.get(key)
        if entry is None:
            return Section(self.source, self._child(key), self.line)
        section = self._section(entry)
        if section is not entry.node and not is_null(entry.node):  # it is read once, however often it is looked at
            self._entries[key] = replace(entry, node=section)
        return section

    def sections(self, key: str) -> list["Section"]:
        """The list of sections under `key`; empty if it is absent."""
        return [self._section(entry) for entry in self._list(key, "'- name: …'")]

    def value(self, key: str, *, expand: bool = True) -> Value | None:
        """The scalar under `key`, or None if it is absent. `expand`: take `${NAME}` from the environment."""
        entry = self._entries.get(key)
        if entry is None or is_null(entry.node):
            return None
        return self._value(entry, expand)

    def required(self, key: str, hint: str = "") -> Value:
        """The scalar under `key`, which must be there and not be empty."""
        value = self.value(key)
        if value is None or not value.text:
            missing = f"{self._child(key)!r} is missing{hint and f': {hint}'}"
            if value is None:
                raise self.error(missing)
            empty = f" (the environment variable {value.variable!r} is empty)" if value.variable is not None else ""
            raise value.error(missing + empty)
        return value

    def values(self, key: str, *, expand: bool = True, blank: bool = False) -> list[Value]:
        """The list of scalars under `key`; empty if it is absent. `blank`: entries without a value are empty texts."""
        return [self._value(entry, expand, blank) for entry in self._list(key, "'- …'")]

    def _child(self, key: str) -> str:
        written = self._written.get(key, key)
        return f"{self.key}.{written}" if self.key else written

    def _section(self, entry: Entry) -> "Section":
        if isinstance(entry.node, Section):
            return entry.node
        if is_null(entry.node):
            return Section(self.source, entry.key, entry.line)
        if not isinstance(entry.node, yaml.MappingNode):
            raise self.source.error(entry.line, f"{entry.key!r} must hold keys with values, not {_kind(entry.node)}")
        return Section.of(self.source, entry.key, entry.line, entry.node)

    def _list(self, key: str, example: str) -> list[Entry]:
        entry = self._entries.get(key)
        if entry is None or is_null(entry.node):
            return []
        if not isinstance(entry.node, yaml.SequenceNode):
            text = f"{entry.key!r} must be a list, with lines such as {example}, not {_kind(entry.node)}"
            raise self.source.error(entry.line, text)
        return [Entry(entry.key, line_of(node), node) for node in entry.node.value]

    def _value(self, entry: Entry, expand: bool, blank: bool = False) -> Value:
        node, line, key = entry.node, entry.line, entry.key
        if not isinstance(node, yaml.ScalarNode):
            raise self.source.error(line, f"{key!r} must be a single value, not {_kind(node)}")
        if node.tag not in _SCALAR_TAGS:
            raise self.source.error(line, f"the value of {key!r} has a tag; if its '!' is meant, put it in quotes")
        if is_null(node):
            if blank:
                return Value(self.source, key, line, "")
            raise self.source.error(line, f"an entry of {key!r} is empty")
        text = node.value
        variable = referenced(text) if expand else None
        if variable is None:
            return Value(self.source, key, line, text)
        try:
            text = os.environ.get(variable)
            if text is not None:
                text.encode()
        except UnicodeEncodeError:
            message = f"the environment variable {variable!r}, for {key!r}, is not UTF-8 text"
            raise self.source.error(line, message) from None
        if text is None:
            message = f"the environment variable {shortened(variable)!r}, for {key!r}, is not set"
            raise UnsetVariable(str(self.source.error(line, message)))
        return Value(self.source, key, line, text, variable)

    def _read(self, node: yaml.MappingNode) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = line_of(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.source.error(line, f"a key in {self.name} must be plain text, not {_kind(key_node)}")
            key = key_node.value
            if key_node.tag == _TAG + "merge":
                merged.append(value_node)
            elif key in entries:
                text = f"the key {shortened(key)!r} stands already in line {entries[key].line}"
                raise self.source.error(line, text)
            else:
                entries[key] = Entry(self._child(key), line, value_node)
        for value_node in merged:
            self._merge(entries, value_node)
        return entries

    def _merge(self, entries: dict[str, Entry], node: yaml.Node) -> None:
        """`<<: *anchor`: the keys of another mapping, where they are not given here."""
        for other in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(other, yaml.MappingNode):
                raise self.source.error(line_of(node), "after '<<:' the anchor of a mapping is expected")
            self.source.merges += 1
            if self.source.merges > _MOST_MERGES:
                raise self.source.error(line_of(node), f"there are more than {_MOST_MERGES} merges ('<<') in the file")
            for key, entry in self._read(other).items():
                entries.setdefault(key, entry)


def shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def nearest(text: str, known: Collection[str]) -> str:
    """`; did you mean '…'?`, or nothing when none of the known words is near."""
    import difflib  # takes time, and is of use for mistakes only

    matches = difflib.get_close_matches(shortened(text), list(known), 1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def is_null(node: yaml.Node | Section) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _TAG + "null" and node.value in _NULLS


def referenced(text: str) -> str | None:
    """The name of the environment variable that a value stands for: one that is exactly `${NAME}`."""
    text = text.strip()
    return text[2:-1].strip() if text.startswith("${") and text.endswith("}") else None


def line_of(part: yaml.Node | yaml.Event) -> int | None:
    """None for nodes that were made of TOML."""
    return part.start_mark.line + 1 if part.start_mark else None


def _kind(node: yaml.Node | Section) -> str:
    if isinstance(node, (yaml.MappingNode, Section)):
        return "keys with values"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def _too_deep(source: Source, line: int | None) -> ConfigError:
    return source.error(line, f"this is not a configuration: it is nested more than {DEEPEST} levels deep")


def _syntax_error(source: Source, text: str, failure: yaml.YAMLError) -> ConfigError:
    mark = getattr(failure, "problem_mark", None)
    if mark is None:  # a control character
        return source.error(None, "this is not YAML: the file contains control characters")
    line = text.split("\n")[mark.line : mark.line + 1]
    problem = getattr(failure, "problem", None) or "it cannot be understood"
    if "nesting depth" in problem:  # beyond the parser's own limit
        return _too_deep(source, mark.line + 1)
    if line and line[0][mark.column : mark.column + 1] == "\t":
        problem = "a tab; indent with spaces"
    elif re.search("undefined alias|undefined tag|duplicate anchor", problem):  # do not repeat what may be a password
        problem = "a value that begins with '*', '&' or '!' must stand in quotes"
    return source.error(mark.line + 1, f"column {mark.column + 1}: this is not YAML: {problem}")
