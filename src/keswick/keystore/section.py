"""What a key store's section of the configuration file looks like, as plain data: each store describes its own.

A store over a network, or one with secrets, has settings by dotted key, such as `approle.secret`. A setting that is not
given and has no default is absent; a list is joined with spaces; a duration is a number of seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

TEXT = "text"
URL = "URL"
DURATION = "duration"
PEM_FILE = "path of a PEM file"
PEM_FILES = "path of a PEM file or a folder of them"
"""What is to be written for a setting."""


@dataclass(frozen=True, slots=True)
class StoreSection:
    """The store that is configured: its kind, such as `vault` or `aws.secretsmanager`, and its settings, checked and
    with their defaults."""

    kind: str
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)


MEMORY = StoreSection("memory")
"""Keys in memory, which no file can ask for: for development."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What may stand in a section. `required` may name sections, too."""

    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    defaults: Mapping[str, str] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The values that a key may have."""
    durations: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    meaningless: tuple[str, ...] = ()
    """Keys of older releases."""
    sections: "Mapping[str, Shape]" = field(default_factory=dict)
    together: tuple[str, ...] = ()
    """Keys of which all or none are set."""
    methods: tuple[str, ...] = ()
    """Keys or sections of which at most one may stand: ways to log in, or to seal."""
    must_log_in: bool = False
    """Whether one of them must stand."""
    purpose: str = "way to log in"
    """What they are, for the one who set none, or several."""
    folder: str = ""
    """The key, if any, that names a folder of this machine which opening the store makes."""

    def keys(self) -> tuple[str, ...]:
        return (*self.required, *self.optional, *self.defaults, *self.lists, *self.sections)


CA_ONLY = Shape(optional=("ca",))
"""A `tls` section that only says whom to trust."""


class Setting(NamedTuple):
    """A key within a section of the configuration file, and what an operator has to know of it. Texts are Markdown."""

    name: str
    """With dots, such as `proxy.header.cert`."""
    meaning: str
    value: str
    """What is to be written, such as `duration`."""
    example: str | tuple[str, ...]
    """A valid value; several are entries of a list."""
    default: str = ""
    """The value that an absent key has, as it would be written; empty if there is none that could be written."""
    otherwise: str = "none"
    """What an absent key without such a default means."""
    needed: str | None = None
    """What it is required with: another key or a section, or "" for the section that is described; None: nothing."""
    own: bool = False
    """Whether the original has no such key."""
    since: str = "0.1.0"
    """The version of Keswick."""


CA = Setting("tls.ca", "whom to trust when the store is called", PEM_FILES, "/etc/kes/store-ca.crt")
