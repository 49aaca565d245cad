"""Writes a document as YAML that people read, with the comments of the file that it came from."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import yaml

from keswick.config.document import LOADER, Entry, Section, is_null, line_of

_ENDLESS = 1 << 30
_TOML_TABLE = re.compile(r"\s*\[\[?([^]#]+)\]\]?\s*(#.*)?$")
_TOML_KEY = re.compile(r"""\s*([\w.\"'-]+)\s*=\s*(?:(?:\"[^\"\\]*\"|'[^']*'|[\w.+:-]+)\s*(#.*)?$)?""")
_WITHOUT_TEXT = (yaml.BlockEndToken, yaml.StreamStartToken, yaml.StreamEndToken, yaml.DirectiveToken)

Content: TypeAlias = "str | list[Item] | dict[str, Item]"


@dataclass(slots=True)
class Item:
    """A text, a list, or keys with values, and the comments around it."""

    content: Content
    above: list[str] = field(default_factory=list)
    """Lines that begin with `#`, and empty ones."""
    behind: str = ""
    """On the same line; it begins with `#`."""
    is_quoted: bool = False
    """Whether a text is to stand in quotes even if it could do without."""

    @property
    def keys(self) -> "dict[str, Item]":
        """Those of a section."""
        assert isinstance(self.content, dict)
        return self.content

    def section(self, key: str) -> "Item":
        """The section under `key`, which is made where there is none."""
        return self.keys.setdefault(key, Item({}))

    def replace_entries(self, key: str, change: "Callable[[list[Item]], Iterable[Item]]") -> None:
        """Change the list under `key`, if there is one."""
        item = self.keys.get(key)
        if item is not None and isinstance(item.content, list):
            item.content = list(change(item.content))

    def at(self, *path: str) -> "Item | None":
        item: Item | None = self
        for key in path:
            item = item.keys.get(key) if item is not None else None
        return item


class Comments:
    """The comments of a file, each of which can be taken once."""

    def __init__(self, own: dict[int, str], behind: dict[int, str], last: int, lines: Mapping[str, int]) -> None:
        self._own = own
        """Comments with a line of their own, and empty lines, by their index."""
        self._behind = behind
        self._last = last
        """The index of the last line that is none of these."""
        self._lines = lines
        """In which line a key stands, if its entry does not know."""

    @classmethod
    def of_yaml(cls, text: str) -> "Comments":
        """Of a text that was read without an error."""
        ends, last = _content_ends(text)
        own, behind = {}, {}
        for index, line in enumerate(re.split("\r\n|[\r\n\x85\u2028\u2029]", text)):
            end = ends.get(index, 0)
            rest = line[end:].strip()
            if end == 0 and (rest in ("", "---") or rest.startswith("#")):
                own[index] = rest.removeprefix("---")
            elif rest.startswith("#"):
                behind[index] = rest
        return cls(own, behind, last, {})

    @classmethod
    def of_toml(cls, text: str) -> "Comments":
        """Where a line is ambiguous, as within a text of several lines, a comment may be missed or come to nothing."""
        own: dict[int, str] = {}
        behind: dict[int, str] = {}
        lines: dict[str, int] = {}
        table, last = "", -1
        for index, line in enumerate(text.splitlines()):
            if not line.strip() or line.lstrip().startswith("#"):
                own[index] = line.strip()
                continue
            last = index
            if match := _TOML_TABLE.match(line):
                table = re.sub(r"[\s\"']", "", match[1]) + "."
                lines.setdefault(table[:-1], index + 1)
            elif match := _TOML_KEY.match(line):
                lines[table + match[1].strip("\"'")] = index + 1
            if match and match[2]:
                behind[index] = match[2]
        return cls(own, behind, last, lines)

    def above(self, entry: Entry) -> list[str]:
        """What stands directly over an entry."""
        line = self._line(entry)
        return [] if line is None else self._take(line - 2)

    def behind(self, entry: Entry) -> str:
        line = self._line(entry)
        return "" if line is None else self._behind.pop(line - 1, "")

    def rest(self) -> list[str]:
        """What stands behind the content."""
        index = self._last
        while index + 1 in self._own:
            index += 1
        return self._take(index)

    def remaining(self) -> list[int]:
        """The lines of the comments that were not taken."""
        own = [index for index, comment in self._own.items() if comment and index < self._last]
        return sorted(index + 1 for index in (*own, *self._behind))

    def has_line(self, entry: Entry) -> bool:
        return self._line(entry) is not None

    def _line(self, entry: Entry) -> int | None:
        return self._lines.get(entry.key) if entry.line is None else entry.line

    def _take(self, index: int) -> list[str]:
        """The lines of comments that end with this one."""
        found = []
        while index in self._own:
            found.append(self._own.pop(index))
            index -= 1
        return found[::-1]


def _content_ends(text: str) -> tuple[dict[int, int], int]:
    """The column at which the content of each line of the first document ends, and its last line."""
    ends: dict[int, int] = {}
    last = -1
    for token in yaml.scan(text, Loader=LOADER):
        if isinstance(token, _WITHOUT_TEXT):
            continue
        if isinstance(token, (yaml.DocumentStartToken, yaml.DocumentEndToken)):
            if ends:
                break
            continue
        start, end = token.start_mark, token.end_mark
        ends.update(dict.fromkeys(range(start.line, end.line), _ENDLESS))
        last = max(last, end.line - 1)
        if end.column:
            ends[end.line] = max(ends.get(end.line, 0), end.column)
            last = end.line
    return ends, last


def draft(section: Section, comments: Comments) -> Item:
    """What stands in a section, as it is written there: references to the environment stay references."""
    keys = {}
    for key, entry in section.entries().items():
        above = comments.above(entry)
        item = draft(section.section(key), comments) if section.is_section(key) else _draft(entry, comments)
        if isinstance(item.content, dict) and item.content and not comments.has_line(entry):
            first = next(iter(item.content.values()))  # the section is not in the file, but what stands in it now
            above, first.above = first.above, []
        keys[key] = replace(item, above=above, behind=comments.behind(entry))
    return Item(keys)


def _draft(entry: Entry, comments: Comments) -> Item:
    match entry.node:
        case yaml.SequenceNode(value=nodes):
            return Item([_entry(Entry(entry.key, line_of(node), node), comments) for node in nodes])
        case yaml.MappingNode(value=pairs):
            return Item({key.value: _draft(Entry(entry.key, entry.line, value), comments) for key, value in pairs})
        case yaml.ScalarNode(value=text, style=style) as node:
            return Item("" if is_null(node) else text, is_quoted=style in ("'", '"'))
    raise AssertionError(entry.key)


def _entry(entry: Entry, comments: Comments) -> Item:
    above = [] if entry.line is None else comments.above(entry)
    item = _draft(entry, comments)
    return replace(item, above=above, behind="" if entry.line is None else comments.behind(entry))


def render(top: Item, rest: Sequence[str] = ()) -> str:
    """`rest`: comments behind all."""
    if rest and rest[0]:
        rest = ["", *rest]
    return "\n".join([*_keys(top.keys, ""), *rest]).rstrip("\n") + "\n"


def _keys(keys: dict[str, Item], indent: str) -> Iterator[str]:
    for key, item in keys.items():
        yield from _above(item, indent)
        yield from _lines(f"{indent}{_key(key)}:", item, indent)


def _lines(start: str, item: Item, indent: str) -> Iterator[str]:
    """`start`: what stands on the line already, such as the key."""
    behind = f" {item.behind}" if item.behind else ""
    match item.content:
        case str(text):
            if (block := _block(text, indent + "  ")) is not None:
                yield f"{start} {block}"
            else:
                yield f"{start} {_quoted(text) if item.is_quoted else _value(text)}{behind}"
        case []:
            yield f"{start} []{behind}"
        case list(entries):
            yield start + behind
            for entry in entries:
                yield from _above(entry, indent + "  ")
                yield from _entry_lines(entry, indent + "  ")
        case dict(keys) if keys:
            yield start + behind
            yield from _keys(keys, indent + "  ")
        case _:
            yield f"{start} {{}}{behind}"


def _entry_lines(entry: Item, indent: str) -> Iterator[str]:
    if not isinstance(entry.content, dict) or not entry.content:
        yield from _lines(f"{indent}-", entry, indent)
        return
    first, *others = _keys(entry.content, indent + "  ")
    yield f"{indent}- {first.lstrip()}" + (f" {entry.behind}" if entry.behind else "")
    yield from others


def _above(item: Item, indent: str) -> Iterator[str]:
    for comment in item.above:
        yield f"{indent}{comment}" if comment else ""


def _key(text: str) -> str:
    return text if _reads_as(f"{text}: x", 0, text) else _quoted(text)


def _value(text: str) -> str:
    return text if _reads_as(f"x: {text}", 1, text) else _quoted(text)


def _quoted(text: str) -> str:
    quoted: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=_ENDLESS)
    return quoted.rstrip("\n")


def _block(text: str, indent: str) -> str | None:
    """A text of several lines, such as a PEM file, as they stand; None if it cannot be written so."""
    if "\n" not in text.rstrip("\n"):
        return None
    chomping = "" if text.endswith("\n") else "-"
    block = "\n".join([f"|{chomping}", *(f"{indent}{line}" if line else "" for line in text.splitlines())])
    return block if _reads_as(f"x: {block}\n", 1, text) else None


def _reads_as(line: str, place: int, text: str) -> bool:
    """Whether the key (0) or the value (1) of a line is `text` for every reader of YAML."""
    if "\n" in line.rstrip("\n") and not line.startswith("x: |"):
        return False
    try:
        node = yaml.compose(line, Loader=LOADER)
    except yaml.YAMLError:
        return False
    if not isinstance(node, yaml.MappingNode) or len(node.value) != 1:
        return False
    read = node.value[0][place]
    return (
        isinstance(read, yaml.ScalarNode)
        and read.value == text
        and not is_null(read)
        and read.tag != "tag:yaml.org,2002:merge"
    )
