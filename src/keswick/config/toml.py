"""TOML, in which files of 2020 may be written, as the nodes that are made of YAML."""

import tomllib

import yaml

from keswick.config.document import DEEPEST, Section, Source

_TAG = "tag:yaml.org,2002:"


def parse(source: Source, text: str) -> Section:
    """The top section. Nothing in it has a line. Raises ConfigError."""
    try:
        top = tomllib.loads(text)
    except (ValueError, RecursionError) as failure:
        raise source.error(None, f"this is not TOML: {_lowered(str(failure))}") from None
    source.is_toml = True
    if not top:
        raise source.error(None, "the file is empty")
    return Section.of(source, "", None, _mapping(source, top, 1))


def _lowered(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _mapping(source: Source, table: dict[str, object], depth: int) -> yaml.MappingNode:
    if depth > DEEPEST:
        raise source.error(None, f"this is not a configuration: it is nested more than {DEEPEST} levels deep")
    return yaml.MappingNode(
        _TAG + "map", [(_scalar(key), _node(source, value, depth + 1)) for key, value in table.items()]
    )


def _node(source: Source, value: object, depth: int) -> yaml.Node:
    if isinstance(value, dict):
        return _mapping(source, value, depth)
    if isinstance(value, list):
        if depth > DEEPEST:
            raise source.error(None, f"this is not a configuration: it is nested more than {DEEPEST} levels deep")
        return yaml.SequenceNode(_TAG + "seq", [_node(source, entry, depth + 1) for entry in value])
    return _scalar(str(value).lower() if isinstance(value, bool) else str(value))


def _scalar(text: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(_TAG + "str", text)
