"""YAML or TOML: the extension of the file tells, or else what can be understood."""

from keswick.config import document
from keswick.config.document import Section, Source
from keswick.config.model import ConfigError


def parse(source: Source, text: str) -> Section:
    """The top section. Raises ConfigError."""
    if source.file.endswith(".toml"):
        return _toml(source, text)
    try:
        return document.parse(source, text)
    except ConfigError:
        try:
            return _toml(source, text)
        except ConfigError:
            pass
        raise


def _toml(source: Source, text: str) -> Section:
    from keswick.config import toml  # takes time, and is of use for a few files from 2020

    return toml.parse(source, text)
