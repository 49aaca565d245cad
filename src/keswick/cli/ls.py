"""`kes ls`: names of keys, policies or identities."""

from keswick.cli.command import Arguments, Command, CommandError, Flag
from keswick.cli.connection import INSECURE, connect, failing
from keswick.cli.input import read_word
from keswick.cli.output import JSON, print_names


def ls(arguments: Arguments) -> None:
    if len(arguments.words) > 1:
        raise CommandError("too many arguments")
    if arguments.has("policy") and arguments.has("identity"):
        raise CommandError("cannot list policies and identities at the same time")
    prefix = "".join(arguments.words)
    if arguments.value("api-key") == "-":
        arguments.flags["api-key"] = [read_word(arguments, "API key")]
    with connect(arguments) as client:
        if arguments.has("policy"):
            header, call = "Policy", client.list_policies
        elif arguments.has("identity"):
            header, call = "Identity", client.list_identities
        else:
            header, call = "Key", client.list_keys
        with failing("failed to list " + {"Policy": "policies", "Identity": "identities", "Key": "keys"}[header]):
            names = sorted(call(prefix))
    print_names(header, names, arguments)


COMMAND = Command(
    "[PREFIX]",
    "List keys, policies or identities.",
    ls,
    (
        Flag(
            "api-key",
            "The API key to use, '-' to read it from standard input; better set KES_API_KEY.",
            short="a",
            value="KEY",
        ),
        Flag("server", "The server's endpoint.", short="s", value="HOST:PORT"),
        INSECURE,
        JSON,
        Flag("identity", "List identities.", short="i"),
        Flag("policy", "List policies.", short="p"),
    ),
    examples=("kes ls", "kes ls --policy", "kes ls my-app --server kes.example.com:7373 --api-key - <admin.apikey"),
)
