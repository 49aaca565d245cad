"""What a server runs with: a configuration file and the flags that win over it, or development mode."""

import dataclasses

from keswick import keystore
from keswick.config import TLS, Config, ConfigError, Log, MemoryStore, differing_rules, load, parse_address
from keswick.identity import APIKey
from keswick.server import tls
from keswick.server.addresses import to_bind
from keswick.server.options import ServerOptions
from keswick.server.routes import APIS, ROUTES


def configured(options: ServerOptions) -> Config:
    """The configuration of the file, with what the command line overrides. Raises ConfigError."""
    if not options.config:
        raise ConfigError(
            "no configuration given: name a file with '--config FILE', make one with 'kes init FOLDER', "
            "or try a server that forgets everything with '--dev'"
        )
    config = load(options.config, apis=APIS)
    if config.tls is not None and config.tls.proxy.identities:
        raise ConfigError("tls.proxy: this version does not take forwarded certificates; remove 'tls.proxy.identities'")
    if config.tls is not None and (options.key or options.cert):
        section = dataclasses.replace(
            config.tls, key=options.key or config.tls.key, cert=options.cert or config.tls.cert
        )
        config = dataclasses.replace(config, tls=section)
    if options.auth is not None and config.tls is not None:
        config = dataclasses.replace(config, tls=_with_auth(config.tls, options.auth))
    if options.address is not None:
        config = dataclasses.replace(config, address=parse_address(options.address, "--addr"))
    return config


def _with_auth(section: TLS, auth: str) -> TLS:
    if auth.lower() not in ("on", "off"):
        raise ConfigError(f"invalid option for --auth: '{auth}'; write 'on' or 'off'")
    wanted = auth.lower() == "on"
    if section.auth is not None and section.auth != wanted:
        said = "on" if section.auth else "off"
        raise ConfigError(f"'--auth {auth}' contradicts 'tls.auth: {said}' in the configuration; remove one of them")
    return dataclasses.replace(section, auth=wanted)


def development(options: ServerOptions) -> tuple[Config, APIKey]:
    """A server for trying things out: keys in memory, a fresh admin API key, a self-made certificate."""
    for flag in ("config", "key", "cert", "auth"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"'--{flag}' flag is not supported in development mode")
    key = APIKey.generate()
    config = Config(admin=key.identity, keystore=MemoryStore(), tls=None, log=Log(audit=0))
    if options.address is not None:
        config = dataclasses.replace(config, address=parse_address(options.address, "--addr"))
    return config, key


def check(config: Config) -> list[str]:
    """What `kes server --check` says of a configuration that could be read: where it may surprise.

    Raises ConfigError or KeyStoreError for what would keep a server from starting with it, as far as it shows without
    starting one.
    """
    if config.tls is not None:
        tls.load(config.tls, optional=False)
    for address in (config.address, *([config.metrics.address] if config.metrics else [])):
        to_bind(address)
    keystore.check(config.keystore)
    return [
        *(f"Warning: {warning}" for warning in config.warnings),
        *(f"Note: {sentence}" for sentence in notes(config)),
    ]


def notes(config: Config) -> list[str]:
    """Where rules of policies mean one thing to one release and another to another; a sentence each."""
    return differing_rules(config, [route.path for route in ROUTES if route.path.endswith("/")])
