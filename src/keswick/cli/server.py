"""`kes server`: run a server."""

import signal

from keswick.cli.command import Arguments, Command, Flag


def server(arguments: Arguments) -> int:
    arguments.at_most(0)
    key, cert, auth = _either(arguments, "key"), _either(arguments, "cert"), _auth(arguments)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # one that comes while modules are loaded must not end the process
    from keswick.server.lifecycle import run
    from keswick.server.options import ServerOptions

    return run(
        ServerOptions(
            config=arguments.value("config"),
            address=arguments.value("addr"),
            dev=arguments.has("dev"),
            check=arguments.has("check"),
            key=key,
            cert=cert,
            auth=auth,
            root=arguments.value("root"),
            mlock=arguments.has("mlock"),
            quiet=arguments.has("quiet"),
        )
    )


def _either(arguments: Arguments, flag: str) -> str | None:
    """The value of a flag, or of its spelling of 2020."""
    value, old = arguments.value(flag), arguments.value(f"tls-{flag}")
    if value is not None and old is not None and value != old:
        arguments.fail(f"'--tls-{flag}' is the same as '--{flag}'; give one of them")
    return old if value is None else value


_MTLS_AUTH = {"verify": "on", "ignore": "off"}


def _auth(arguments: Arguments) -> str | None:
    auth, old = arguments.value("auth"), arguments.value("mtls-auth")
    if old is None:
        return auth
    if old.lower() not in _MTLS_AUTH:
        arguments.fail(f"invalid option for --mtls-auth: '{old}'; write '--auth on' or '--auth off'")
    meant = _MTLS_AUTH[old.lower()]
    if auth is not None and auth.lower() != meant:
        arguments.fail(f"'--mtls-auth {old}' means '--auth {meant}'; give one of them")
    return meant


COMMAND = Command(
    "",
    "Start a server.",
    server,
    (
        Flag("config", "The configuration file.", value="FILE"),
        Flag("addr", "The address to listen on, instead of the one in the file.", value="IP:PORT"),
        Flag("key", "The server's private key, instead of 'tls.key'.", value="FILE"),
        Flag("cert", "The server's certificate, instead of 'tls.cert'.", value="FILE"),
        Flag("auth", "'on' to verify client certificates, 'off' to take any.", value="on|off", choices=("on", "off")),
        Flag("root", "The admin's identity, where the file names none; '_' for no admin.", value="IDENTITY"),
        Flag("mlock", "Do not start if memory cannot be kept out of swap; that is tried in any case."),
        Flag("quiet", "Nothing on standard output but the audit log.", short="q"),
        Flag("check", "Check the configuration and end."),
        Flag("dev", "A server to try things: keys in memory, a new API key each time."),
        Flag("tls-key", "As '--key', until 2020.", value="FILE"),
        Flag("tls-cert", "As '--cert', until 2020.", value="FILE"),
        Flag(
            "mtls-auth",
            "As '--auth on' and '--auth off', until 2020.",
            value="verify|ignore",
            choices=tuple(_MTLS_AUTH),
        ),
    ),
    details="A folder with a configuration, certificates and an API key is made by 'kes init'.",
    examples=("kes server --config config.yaml", "kes server --dev"),
)
