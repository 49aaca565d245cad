"""The configuration: one model, one reader for each form of the file that ends in that model."""

import os
from collections.abc import Collection, Mapping

from keswick.config import forms
from keswick.config.address import parse_address
from keswick.config.document import read
from keswick.config.model import (
    API,
    DEFAULT_PORT,
    PRESENT,
    TLS,
    Address,
    Cache,
    Config,
    ConfigError,
    Log,
    Metrics,
    Policy,
    Proxy,
    ProxyProtocol,
    Stop,
)
from keswick.config.readings import differing_rules
from keswick.config.syntax import parse

__all__ = [
    "API",
    "DEFAULT_PORT",
    "PRESENT",
    "TLS",
    "Address",
    "Cache",
    "Config",
    "ConfigError",
    "Log",
    "Metrics",
    "Policy",
    "Proxy",
    "ProxyProtocol",
    "Stop",
    "differing_rules",
    "load",
    "parse_address",
]


def load(path: str | os.PathLike[str], *, apis: Mapping[str, bool], by_flags: Collection[str] = ()) -> Config:
    """Read the configuration in the file `path`, whatever its form. Raises ConfigError, and nothing else, when it
    cannot be used.

    `apis`: the paths of the server's routes, and whether each may be opened to callers without a certificate.
    `by_flags`: keys of the present form that the command line gives, of `admin.identity`, `tls.key` and `tls.cert`; the
    file may leave them out.
    """
    document = parse(*read(path))
    return forms.read(document, forms.recognise(document), apis, by_flags)
