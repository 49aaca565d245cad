"""The configuration: one model, one reader for each form of the file that ends in that model."""

import os
from collections.abc import Mapping

from keswick.config import document, present
from keswick.config.address import parse_address
from keswick.config.document import Section, Source
from keswick.config.model import (
    API,
    DEFAULT_PORT,
    TLS,
    Address,
    Cache,
    Config,
    ConfigError,
    FSStore,
    KeyStoreSection,
    Log,
    MemoryStore,
    Metrics,
    Policy,
    Proxy,
    RemoteStore,
)
from keswick.config.readings import differing_rules

__all__ = [
    "API",
    "DEFAULT_PORT",
    "TLS",
    "Address",
    "Cache",
    "Config",
    "ConfigError",
    "FSStore",
    "KeyStoreSection",
    "Log",
    "MemoryStore",
    "Metrics",
    "Policy",
    "Proxy",
    "RemoteStore",
    "differing_rules",
    "load",
    "parse_address",
]

_NO_READER = "and this version has no reader for it; docs/configuration.md describes the present form"


def load(path: str | os.PathLike[str], *, apis: Mapping[str, bool]) -> Config:
    """Read the configuration in the file `path`. Raises ConfigError, and nothing else, when it cannot be used.

    `apis`: the paths of the server's routes, and whether each may be opened to callers without a certificate.
    """
    source, text = document.read(path)
    if source.file.endswith(".toml"):
        raise _toml_error(source)
    try:
        top = document.parse(source, text)
    except ConfigError:
        if _is_toml(text):
            raise _toml_error(source) from None
        raise
    if _is_old(top):
        raise source.error(
            None, f"this is the form of 2020 or 2021 (with 'root', or with stores under 'keys'), {_NO_READER}"
        )
    return present.read(top, apis)


def _is_old(top: Section) -> bool:
    """Older forms name the admin `root`, and hold the key store under `keys` (2021) or log to files (2020)."""
    if "admin" in top:
        return False
    return (
        "root" in top
        or top.is_section("keys")
        or (top.is_section("log") and any(top.section("log").is_section(key) for key in ("error", "audit")))
    )


def _is_toml(text: str) -> bool:
    import tomllib  # takes time, and is of use for files that are not what they should be

    try:
        return bool(tomllib.loads(text))
    except (ValueError, RecursionError):
        return False


def _toml_error(source: Source) -> ConfigError:
    return source.error(None, f"this is TOML, the form of 2020, {_NO_READER}")
