"""`kes server`: run a server."""

import signal

from keswick.cli.command import Arguments, Command, Flag


def server(arguments: Arguments) -> int:
    arguments.at_most(0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # one that comes while modules are loaded must not end the process
    from keswick.server.lifecycle import run
    from keswick.server.options import ServerOptions

    return run(
        ServerOptions(
            config=arguments.value("config"),
            address=arguments.value("addr"),
            dev=arguments.has("dev"),
            check=arguments.has("check"),
            key=arguments.value("key"),
            cert=arguments.value("cert"),
            auth=arguments.value("auth"),
        )
    )


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
        Flag("check", "Check the configuration and end."),
        Flag("dev", "A server to try things: keys in memory, a new API key each time."),
    ),
    details="A folder with a configuration, certificates and an API key is made by 'kes init'.",
    examples=("kes server --config config.yaml", "kes server --dev"),
)
