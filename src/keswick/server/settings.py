"""What a server runs with: a configuration file and the flags that win over it, or development mode."""

import dataclasses

from keswick import keystore
from keswick.config import PRESENT, TLS, Config, ConfigError, Log, differing_rules, load, parse_address
from keswick.identity import APIKey, is_identity
from keswick.server import tls
from keswick.server.addresses import to_bind
from keswick.server.options import ServerOptions
from keswick.server.routes import APIS, ROUTES


def configured(options: ServerOptions) -> Config:
    """The configuration of the file, with what the command line says of it. Raises ConfigError."""
    if not options.config:
        raise ConfigError(_no_file(options))
    flags = {"admin.identity": options.root, "tls.key": options.key, "tls.cert": options.cert}
    config = load(options.config, apis=APIS, by_flags={key for key, value in flags.items() if value is not None})
    if config.tls is not None:
        config = dataclasses.replace(config, tls=_with_tls(config.tls, options))
    config = dataclasses.replace(config, admin=_admin(config, options.root))
    config = dataclasses.replace(config, warnings=(*config.warnings, *_proxy_warnings(config)))
    if options.address is not None:
        config = dataclasses.replace(config, address=parse_address(options.address, "--addr"))
    return config


def _no_file(options: ServerOptions) -> str:
    if options.root or options.key or options.cert:  # these were enough until 2021, for keys that were in memory only
        return (
            "no key store is configured, and no flag can name one: name a file with '--config FILE' that has a section "
            "'keystore', or try a server that forgets everything with '--dev'"
        )
    return (
        "no configuration given: name a file with '--config FILE', make one with 'kes init FOLDER', "
        "or try a server that forgets everything with '--dev'"
    )


def _with_tls(section: TLS, options: ServerOptions) -> TLS:
    section = dataclasses.replace(section, key=options.key or section.key, cert=options.cert or section.cert)
    for flag, path, what in (("key", section.key, "private key"), ("cert", section.cert, "certificate")):
        if not path:
            raise ConfigError(f"no file of the server's {what}: write 'tls.{flag}', or start with '--{flag} FILE'")
    return section if options.auth is None else _with_auth(section, options.auth)


def _with_auth(section: TLS, auth: str) -> TLS:
    if auth.lower() not in ("on", "off"):
        raise ConfigError(f"invalid option for --auth: '{auth}'; write 'on' or 'off'")
    wanted = auth.lower() == "on"
    if section.auth is not None and section.auth != wanted and not section.auth_implied:
        said = "on" if section.auth else "off"
        raise ConfigError(f"'--auth {auth}' contradicts 'tls.auth: {said}' in the configuration; remove one of them")
    return dataclasses.replace(section, auth=wanted, auth_implied=False)


def _admin(config: Config, root: str | None) -> str:
    """The admin of the file, or where it names none the one of the command line."""
    key = "admin.identity" if config.form == PRESENT else "root"
    if root is None:
        if not config.admin:
            raise ConfigError(
                f"no admin: write '{key}: IDENTITY', or start with '--root IDENTITY'; "
                "a word such as '_' means that there is none"
            )
        return config.admin
    if not root or root.startswith(APIKey.PREFIX):
        raise ConfigError(
            "--root: give an identity, as 'kes identity of' prints it, and not the API key, which is a secret; "
            "a word such as '_' means that there is no admin"
        )
    if config.admin and config.admin != root:
        raise ConfigError(
            f"'--root {root}' contradicts '{key}: {config.admin}' in the configuration; remove one of them"
        )
    for name, policy in config.policies.items():
        if root in policy.identities:
            raise ConfigError(f"the policy '{name}' contains the admin of '--root', who needs no policy: '{root}'")
    if config.tls is not None and root in config.tls.proxy.identities:
        raise ConfigError(f"'tls.proxy.identities' contains the admin of '--root', who cannot be a proxy: '{root}'")
    return root


def _proxy_warnings(config: Config) -> list[str]:
    proxy = config.tls.proxy if config.tls is not None else None
    if proxy is None or not proxy.identities or not proxy.admin or not is_identity(config.admin):
        return []
    advice = "write 'tls.proxy.admin: off'" if config.form == PRESENT else "the present form has 'tls.proxy.admin: off'"
    return [
        "tls.proxy: whoever controls a TLS proxy can act as the admin, because the admin's certificate may be "
        f"forwarded; unless the admin needs that, {advice}"
    ]


def development(options: ServerOptions) -> tuple[Config, APIKey]:
    """A server for trying things out: keys in memory, a fresh admin API key, a self-made certificate."""
    for flag in ("config", "root", "key", "cert", "auth"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"'--{flag}' flag is not supported in development mode")
    if options.quiet:
        raise ConfigError("'--quiet' would hide the API key, which is printed only once; leave it out with '--dev'")
    key = APIKey.generate()
    config = Config(admin=key.identity, keystore=keystore.MEMORY, tls=None, log=Log(audit=0))
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
        *(f"Note: {sentence}" for sentence in (*notes(config), *_defaults(config))),
    ]


def notes(config: Config) -> list[str]:
    """Where rules of policies mean one thing to one release and another to another; a sentence each."""
    return differing_rules(config, [route.path for route in ROUTES if route.path.endswith("/")])


def _defaults(config: Config) -> list[str]:
    """What is not said, and meant something else to the releases that the file may be from."""
    found = []
    if "address" in config.unsaid and config.form in ("2020", "2021"):
        found.append(
            "'address' is not set: the server listens on every address of this machine; v0.13 listened on "
            "127.0.0.1:7373 only"
        )
    if config.form == config.dialect == PRESENT and "tls.auth" in config.unsaid:
        found.append(
            "'tls.auth' is not set: certificates of clients are not verified, their keys are what counts. Before "
            "October 2023 they were verified: if the file is older, write 'compatibility: \"2023\"' or 'auth: on'"
        )
    if config.form == config.dialect == PRESENT and "log.audit" in config.unsaid:
        found.append(
            "'log.audit' is not set: requests are not recorded. Releases since October 2023 recorded some in that "
            "case: write 'audit: on' for a log of all"
        )
    return found
