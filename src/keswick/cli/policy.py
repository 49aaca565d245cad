"""`kes policy`: what the server's policies allow and deny."""

from collections.abc import Iterable

from keswick.cli.command import Arguments, Command, Group
from keswick.cli.connection import INSECURE, connect, failing
from keswick.cli.output import COLOUR, ENCLAVE, JSON, date, known, labelled, print_names, rules, wants_colour
from keswick.cli.terminal import is_terminal, printable, to_json

_ABSENT = "policies stand in the server's configuration file, which it reads again at SIGHUP"


def info(arguments: Arguments) -> None:
    name = arguments.word(0, "policy name")
    arguments.at_most(1)
    wants_colour(arguments)  # there is none, but a wrong word is told
    with connect(arguments) as client, failing(f'failed to describe policy "{name}"'):
        policy = client.describe_policy(name)
    if arguments.has("json"):
        print(to_json(known(name=policy.name, created_at=policy.created_at, created_by=policy.created_by)))
    else:
        created_at = date(policy.created_at, local=True)
        print(labelled(("Name", policy.name), ("Date", created_at), ("Created by", policy.created_by)))


def show(arguments: Arguments) -> None:
    name = arguments.word(0, "policy name")
    arguments.at_most(1)
    with connect(arguments) as client, failing(f'failed to show policy "{name}"'):
        policy = client.read_policy(name)
    if arguments.has("json") or not is_terminal():
        about = known(created_at=policy.created_at, created_by=policy.created_by)
        print(to_json({**known(allow=rules(policy.allow), deny=rules(policy.deny)), **about}))
        return
    for title, listed in (("Allow:", policy.allow), ("Deny:", policy.deny)):
        if listed:
            print("\n".join((title, *(f"  · {printable(rule)}" for rule in listed), "")))
    print()
    if policy.created_at:
        print("Created at:", date(policy.created_at, local=True))
    if policy.created_by:
        print("Created by:", policy.created_by)


def list_(arguments: Arguments) -> None:
    print_names("Policy", _names(arguments), arguments)


def list_2021(arguments: Arguments) -> None:
    names = list(_names(arguments))
    if is_terminal():
        print("\n".join(("[", *(f"  {printable(name)}" for name in names), "]")))
    else:
        print(to_json(names))


def _names(arguments: Arguments) -> Iterable[str]:
    arguments.at_most(1)
    with connect(arguments) as client, failing("failed to list policies"):
        return sorted(client.list_policies("".join(arguments.words)))


COMMAND = Group(
    "Look at the server's policies.",
    {
        "info": Command(
            "NAME",
            "Show who made a policy, and when.",
            info,
            (INSECURE, JSON, COLOUR, ENCLAVE),
            examples=("kes policy info my-app", "kes policy info my-app --json"),
        ),
        "ls": Command(
            "[PREFIX]",
            "List policies.",
            list_,
            (INSECURE, JSON, COLOUR),
            examples=("kes policy ls", "kes policy ls my- --json"),
        ),
        "list": Command(
            "[PREFIX]",
            "List policies as in 2021: a JSON array.",
            list_2021,
            (INSECURE,),
            examples=("kes policy list 'my-*'",),
        ),
        "show": Command(
            "NAME",
            "Show what a policy allows and denies.",
            show,
            (INSECURE, JSON, ENCLAVE),
            details="On a terminal the rules are listed, elsewhere they are JSON.",
            examples=("kes policy show my-app", "kes policy show my-app --json"),
        ),
    },
    absent=dict.fromkeys(("add", "assign", "create", "delete", "rm", "unassign", "write"), _ABSENT),
)
