"""What `kes policy` and `kes identity` write at run time: who may do what.

Each server keeps that in its own memory, so of several servers every one is told.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from keswick import policy
from keswick.cli.command import Arguments, CommandError, did_you_mean
from keswick.cli.connection import connect, endpoints, failing
from keswick.cli.input import MOST, read_bytes
from keswick.identity import APIKey

if TYPE_CHECKING:
    from keswick.client import Client

AT_RUN_TIME = (
    "For servers with 'runtime_policies: on' in their configuration, or with a configuration of before\n"
    "October 2023; of several servers each is told. A restart forgets it."
)
"""What the help of these commands tells."""

_IS_IDENTITY = re.compile("[0-9a-f]{64}").fullmatch
_EXAMPLE = '["/v1/key/generate/my-app-*"]'


class Rules(NamedTuple):
    allow: list[str]
    deny: list[str]
    as_paths: bool
    """Whether they were written as in 2021."""


def write(arguments: Arguments, *writes: tuple[str, Callable[["Client"], None]]) -> None:
    """Do these one after the other, at one server after the other; the first that fails ends it. What stands before
    each is said then."""
    from keswick.client import RunTimePoliciesOff

    servers = endpoints(arguments)
    for server in servers:
        with connect(arguments, server) as client:
            for failure, call in writes:
                what = f"{server}: {failure}" if len(servers) > 1 else failure
                with failing(what):
                    try:
                        call(client)
                    except RunTimePoliciesOff as refusal:  # whose words are that there is no such page
                        off = f"the server takes no policies at run time; {refusal.advice}"
                        raise CommandError(f"{what}: {off}") from None


def assign(arguments: Arguments, name: str, identities: Sequence[str], in_order: Callable[[str, str], str]) -> None:
    """`in_order`: the command as it is to be typed, from a policy and an identity.

    Which of the two comes first changed in 2022. A name is refused where an identity should be, and never taken for
    one: a wrong guess would let the wrong one in.
    """
    for text in (name, *identities):
        refuse_api_key(arguments, text)
    if _IS_IDENTITY(name) and len(identities) == 1 and not _IS_IDENTITY(identities[0]):
        arguments.fail(f"\"{identities[0]}\" is not an identity. Did you mean '{in_order(identities[0], name)}'?")
    for identity in identities:
        check_identity(arguments, identity)
    write(arguments, *(_assignment(name, identity) for identity in identities))


def _assignment(name: str, identity: str) -> tuple[str, Callable[["Client"], None]]:
    return (
        f'failed to assign policy "{name}" to "{identity}"',
        lambda client: client.assign_policy(name, identity),
    )


def check_identity(arguments: Arguments, text: str) -> None:
    """Refuse what is no identity of anybody: servers would take it, and it would change nothing for the one meant."""
    refuse_api_key(arguments, text)
    if not _IS_IDENTITY(text):
        arguments.fail(f'"{text}" is not an identity: those have 64 of the characters 0-9 a-f')


def refuse_api_key(arguments: Arguments, text: str) -> None:
    """Where a name is meant: it would be sent, and logged."""
    if text.startswith(APIKey.PREFIX):
        arguments.fail("an argument is an API key, which is a secret; 'kes identity of -' tells whose identity it is")


# --- policies as JSON ---


def read_rules(arguments: Arguments, source: str) -> Rules:
    """The policy in a file, or on standard input when that is `-`: `{"allow": […], "deny": […]}`, `{"paths": […]}` as
    in 2021, or what `kes policy show` prints."""
    if source == "-":
        return _Document(arguments, "standard input").rules(read_bytes(arguments, "policy"))
    with open(source, "rb") as file:
        data = file.read(MOST + 1)
    if len(data) > MOST:
        arguments.fail(f"'{source}' is longer than {MOST >> 10} KiB")
    return _Document(arguments, f"'{source}'").rules(data)


class _Document(NamedTuple):
    arguments: Arguments
    name: str

    def rules(self, data: bytes) -> Rules:
        import json  # late: most commands read none

        try:
            fields = json.loads(data, object_pairs_hook=self._object)
        except json.JSONDecodeError as error:
            self._fail(f"this is not JSON: line {error.lineno}, column {error.colno}: {error.msg}")
        except (ValueError, RecursionError):
            self._fail("this is not JSON")
        if not isinstance(fields, dict):
            self._fail(f'this is not a policy, such as {{"allow": {_EXAMPLE}}}')
        for field in fields.keys() - {"allow", "deny", "paths", "name", "created_at", "created_by"}:
            self._fail(f'unknown field "{field}"{did_you_mean(field, ("allow", "deny", "paths"))}')
        if "paths" in fields and not fields.keys().isdisjoint(("allow", "deny")):
            self._fail("'paths' is what 'allow' was called until 2021; write 'allow' and 'deny'")
        as_paths = "paths" in fields
        allow = "paths" if as_paths else "allow"
        return Rules(self._patterns(allow, fields.get(allow)), self._patterns("deny", fields.get("deny")), as_paths)

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self._fail(f'"{twice}" stands there twice')
        return fields

    def _patterns(self, field: str, value: object) -> list[str]:
        """Rules are an array, or the names in an object, as servers of today write them."""
        if value is None:
            return []
        if not isinstance(value, list | dict) or not all(isinstance(rule, str) for rule in value):
            self._fail(f"'{field}' must be a list of rules, such as {_EXAMPLE}")
        rules: list[str] = list(value)
        for rule in rules:
            try:
                policy.check(rule)
            except policy.PatternError as error:
                self._fail(f"{field}: {error}")
        return rules

    def _fail(self, message: str) -> NoReturn:
        self.arguments.fail(f"{self.name}: {message}")
