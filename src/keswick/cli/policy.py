"""`kes policy`: what the server's policies allow and deny, and to whom they apply."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from keswick.cli import pattern
from keswick.cli.access import AT_RUN_TIME, assign, read_rules, refuse_api_key, write
from keswick.cli.command import Arguments, Command, Group
from keswick.cli.connection import INSECURE, connect, failing
from keswick.cli.output import COLOUR, ENCLAVE, JSON, date, known, labelled, print_names, rules, wants_colour
from keswick.cli.terminal import is_terminal, printable, to_json

if TYPE_CHECKING:
    from keswick.client import Client


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
    arguments.at_most(1)
    print_names("Policy", _names(arguments, "".join(arguments.words)), arguments)


def list_2021(arguments: Arguments) -> None:
    prefix, matches = pattern.glob(arguments)
    names = list(filter(matches, _names(arguments, prefix)))
    if is_terminal():
        print("\n".join(("[", *(f"  {printable(name)}" for name in names), "]")))
    else:
        print(to_json(names))


def add(arguments: Arguments) -> None:
    arguments.at_most(2)
    _write(arguments, arguments.words[1] if len(arguments.words) > 1 else "-")


def create(arguments: Arguments) -> None:
    arguments.at_most(2)
    arguments.word(0, "policy name")
    _write(arguments, arguments.word(1, "policy file"))


def _write(arguments: Arguments, source: str) -> None:
    name = arguments.word(0, "policy name")
    refuse_api_key(arguments, name)
    rules = read_rules(arguments, source)
    write(arguments, (f'failed to create policy "{name}"', lambda client: client.write_policy(name, *rules)))


def remove(arguments: Arguments) -> None:
    arguments.word(0, "policy name")
    write(arguments, *(_removal(name) for name in arguments.words))


def _removal(name: str) -> tuple[str, Callable[["Client"], None]]:
    return f'failed to delete policy "{name}"', lambda client: client.delete_policy(name)


def assign_to(arguments: Arguments) -> None:
    name = arguments.word(0, "policy name")
    arguments.word(1, "identity")
    assign(arguments, name, arguments.words[1:], lambda policy, identity: f"kes policy assign {policy} {identity}")


def _names(arguments: Arguments, prefix: str) -> Iterable[str]:
    with connect(arguments) as client, failing("failed to list policies"):
        return sorted(client.list_policies(prefix))


_FORM = """A policy is JSON: {"allow": ["/v1/key/generate/my-app-*"], "deny": []}, or {"paths": [...]} as in 2021, or
what 'kes policy show' prints. One of that name is overwritten.
"""

COMMAND = Group(
    "Look at the server's policies, and change them while it runs.",
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
            "[PATTERN]",
            "List policies as in 2021: those that match a glob, as a JSON array.",
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
        "add": Command(
            "NAME [FILE]",
            "Write a policy, from a file or from standard input.",
            add,
            (INSECURE,),
            details=_FORM + AT_RUN_TIME,
            examples=("kes policy add my-app my-app.json", "kes policy show my-app | kes policy add my-other-app"),
        ),
        "create": Command(
            "NAME FILE",
            "Write a policy, from a file; '-' is standard input.",
            create,
            (INSECURE, ENCLAVE),
            details=_FORM + AT_RUN_TIME,
            examples=("kes policy create my-app my-app.json",),
        ),
        "assign": Command(
            "POLICY IDENTITY...",
            "Let a policy apply to identities, instead of those that they had.",
            assign_to,
            (INSECURE, ENCLAVE),
            details="'kes identity assign' takes the two in the other order, as until 2021.\n" + AT_RUN_TIME,
            examples=('kes policy assign my-app "$(kes identity of my-app.crt)"',),
        ),
        "rm": Command(
            "NAME...",
            "Delete policies; their identities have none then.",
            remove,
            (INSECURE, ENCLAVE),
            details=AT_RUN_TIME,
            examples=("kes policy rm my-app",),
        ),
    },
    spellings={"delete": "rm"},
)
