"""`kes identity`: API keys, certificates, the identities of both, and what the server lets them do."""

import math
import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from keswick import pem
from keswick.cli import pattern
from keswick.cli.access import AT_RUN_TIME, assign, refuse_api_key, write
from keswick.cli.command import Arguments, Command, CommandError, Flag, Group, unknown_command
from keswick.cli.connection import INSECURE, connect, failing
from keswick.cli.input import read_word
from keswick.cli.output import (
    COLOUR,
    ENCLAVE,
    GREEN,
    JSON,
    RED,
    date,
    known,
    labelled,
    print_names,
    rules,
    styled,
    wants_colour,
)
from keswick.cli.terminal import ask_password, is_terminal, printable, to_json, write_value
from keswick.files import NewFile, write_files
from keswick.identity import APIKey, identity_of, self_signed

if TYPE_CHECKING:
    from keswick.client import Client, IdentityInfo, Policy
    from keswick.identity import KeyPair

_RECOMPUTE = "The identity can be computed again with:\n\n   kes identity of <API key>"
DEFAULT_EXPIRY = timedelta(hours=720)


def identity(arguments: Arguments) -> None:
    """A new API key; or the identity of an API key or certificate; or the API key of a private key."""
    if len(arguments.words) > 1:
        raise CommandError("too many arguments")
    if not arguments.words:
        key = APIKey.generate()
        if is_terminal():
            print(_about(key, _RECOMPUTE))
        else:
            write_value(key.text)
        return
    found, name = _given(arguments, "API key or file", or_command=True)
    if isinstance(found, APIKey):
        write_value(found.identity)
        return
    for block in found:
        if block.label == "CERTIFICATE":
            write_value(identity_of(public_key(block, name)))
            return
        if block.is_private_key:
            write_value(_api_key_of(block, name).text)
            return
    raise CommandError(f"'{name}' contains no valid PEM certificate or private key")


def of(arguments: Arguments) -> None:
    arguments.at_most(1)
    found, name = _given(arguments, "API key or certificate")
    identity = found.identity if isinstance(found, APIKey) else identity_of(public_key_of_certificates(found, name))
    write_value(f"Identity:\n\n   {identity}" if is_terminal() else identity)


def new(arguments: Arguments) -> None:
    arguments.at_most(1)
    key_file, cert_file = arguments.value("key"), arguments.value("cert")
    if key_file and not cert_file:
        arguments.fail("private key file specified but no certificate file. Set the '--cert' flag")
    if cert_file and not key_file:
        arguments.fail("certificate file specified but no private key file. Set the '--key' flag")
    if not key_file or not cert_file:
        for flag in ("expiry", "encrypt", "force", "ip", "dns"):
            if arguments.has(flag):
                arguments.fail(
                    f"'--{flag}' requires a private key and certificate file. Set the '--cert' and '--key' flag"
                )
        print(_about(APIKey.generate(), _RECOMPUTE))
        return

    key = APIKey.generate()
    pair = certificate(arguments, key, "expiry", client=True, server=True)
    overwrite = arguments.has("force")
    for what, file in (("private key", key_file), ("certificate", cert_file)):
        if not overwrite and Path(file).exists():
            raise CommandError(f"{what} already exists. Use --force to overwrite it")
    password = _new_password() if arguments.has("encrypt") else None
    try:
        write_pair(arguments, Path(key_file), pair.key_pem(password), Path(cert_file), pair.certificate_pem)
    except FileExistsError as error:
        raise CommandError(f"'{error.filename}' already exists. Use --force to overwrite it") from None
    stored = (
        f"The generated TLS private key is stored at: {key_file}\n"
        f"The generated TLS certificate is stored at: {cert_file}\n\n"
    )
    print(_about(key, stored + _RECOMPUTE + f"\n   kes identity of {cert_file}"))


def info(arguments: Arguments) -> None:
    arguments.at_most(1)
    colour = wants_colour(arguments)
    policy: Policy | None = None
    with connect(arguments) as client, failing():
        if arguments.words:
            found = client.describe_identity(arguments.word(0, "identity"))
        else:
            found, policy = client.describe_self()
    if arguments.has("json"):
        print(to_json(_as_json(found, policy)))
        return
    print(
        labelled(
            ("Identity", found.identity),
            ("Policy", printable(found.policy) if arguments.words else ""),
            ("Created At", date(found.created_at, local=True)),
            ("Role", "Admin" if found.is_admin else "User"),
            ("Created By", found.created_by),
        )
    )
    if policy is not None:
        print()
        print(labelled(("Policy", printable(policy.name)), ("Created At", date(policy.created_at, local=True))))
        _print_rules("Allow", policy.allow, GREEN, colour)
        _print_rules("Deny", policy.deny, RED, colour)


def list_(arguments: Arguments) -> None:
    arguments.at_most(1)
    with connect(arguments) as client, failing("failed to list identities"):
        identities = sorted(client.list_identities("".join(arguments.words)))
    print_names("Identity", identities, arguments)


def list_2021(arguments: Arguments) -> None:
    prefix, matches = pattern.glob(arguments)
    with connect(arguments) as client, failing("failed to list identities"):
        for identity, policy in client.list_assignments(prefix):
            if not matches(identity):
                continue
            shown = to_json({"identity": identity, "policy": policy})
            print(f"{identity} => {printable(policy)}" if is_terminal() else shown)


def assign_policy(arguments: Arguments) -> None:
    identity, policy = arguments.word(0, "identity"), arguments.word(1, "policy name")
    arguments.at_most(2)
    assign(arguments, policy, [identity], lambda policy, identity: f"kes identity assign {identity} {policy}")


def remove(arguments: Arguments) -> None:
    arguments.word(0, "identity")
    for identity in arguments.words:
        refuse_api_key(arguments, identity)  # any other word may stand in a policy, such as "_"
    write(arguments, *(_removal(identity) for identity in arguments.words))


def _removal(identity: str) -> tuple[str, Callable[["Client"], None]]:
    return f'failed to forget identity "{identity}"', lambda client: client.forget_identity(identity)


def certificate(
    arguments: Arguments, key: APIKey, expiry_flag: str, *, client: bool = False, server: bool = False
) -> "KeyPair":
    """A certificate for that key, as the flags and the subject in the arguments say."""
    try:
        return self_signed(
            arguments.words[0] if arguments.words else key.identity,
            lifetime=_expiry(arguments, expiry_flag),
            key=key,
            dns=arguments.values("dns"),
            ips=arguments.values("ip"),
            client=client,
            server=server,
        )
    except ValueError as error:
        raise CommandError(f"failed to create certificate: {error}") from None


def write_pair(
    arguments: Arguments, key: Path, key_pem: str, cert: Path, cert_pem: str, *, secret_cert: bool = False
) -> None:
    """Write both or none. Raises FileExistsError unless the user forces it."""
    if os.path.realpath(key) == os.path.realpath(cert):
        arguments.fail("the private key and the certificate need a file each")
    write_files(
        NewFile(cert, cert_pem, secret=secret_cert),
        NewFile(key, key_pem, secret=True),
        overwrite=arguments.has("force"),
    )


def _expiry(arguments: Arguments, flag: str) -> timedelta:
    text = arguments.value(flag)
    if text is None:
        return DEFAULT_EXPIRY
    from keswick.config import duration

    try:
        seconds = duration.parse(text)
    except ValueError as error:
        arguments.fail(f'invalid argument "{text}" for "--{flag}" flag: {error}')
    if seconds < 1:
        arguments.fail(f'invalid argument "{text}" for "--{flag}" flag: a certificate is valid for a second at least')
    return timedelta(seconds=math.floor(seconds))


def _new_password() -> str:
    password = ask_password("Enter password for private key: ")
    if password != ask_password("Confirm password for private key: "):
        raise CommandError("passwords don't match")
    if not password:
        raise CommandError("the password is empty")
    return password


def _about(key: APIKey, ending: str) -> str:
    return (
        f"Your API key:\n\n   {key.text}\n\n"
        "It is shown only this once. Keep it where only the application that uses it can read it.\n\n"
        f"Your Identity:\n\n   {key.identity}\n\n"
        f"The identity is not a secret: it is what policies name.\n\n{ending}"
    )


def _given(arguments: Arguments, what: str, *, or_command: bool = False) -> tuple[APIKey | list[pem.Block], str]:
    """What the only argument is: an API key, or PEM blocks and the name of the file they are in; `-` is standard input.

    `or_command`: whether the word may as well be a command that does not exist.
    """
    word = arguments.word(0, what)
    text = read_word(arguments, what) if word == "-" else word
    if text.startswith(APIKey.PREFIX):
        try:
            return APIKey.parse(text), ""
        except ValueError as error:
            raise CommandError(str(error)) from None
    if word == "-":
        return parse_blocks(text, "standard input"), "standard input"
    return read_blocks(word, or_command=or_command), word


def _api_key_of(block: pem.Block, path: str) -> APIKey:
    try:
        der = pem.decrypt(block, ask_password("Enter password for private key: ")) if block.is_encrypted else block.der
        return APIKey.from_private_key(der)
    except ValueError as error:
        text = str(error)
        raise CommandError(f"'{path}' contains {text}" if text.startswith("unsupported") else text) from None


def public_key_of_certificates(blocks: list[pem.Block], name: str) -> bytes:
    """The public key of the first one, in a file that holds certificates only."""
    if any(block.label != "CERTIFICATE" for block in blocks):
        raise CommandError(f"failed to parse certificate in '{name}': unsupported PEM data block")
    if not blocks:
        raise CommandError(f"failed to parse certificate in '{name}': no PEM certificate found")
    return public_key(blocks[0], name)


def public_key(block: pem.Block, name: str) -> bytes:
    from keswick._native import Certificate

    try:
        return Certificate(block.der).public_key
    except ValueError as error:
        raise CommandError(f"failed to parse certificate in '{name}': {error}") from None


def read_blocks(path: str, *, or_command: bool = False) -> list[pem.Block]:
    """The PEM blocks of a file. `or_command`: see `_given`."""
    try:
        return parse_blocks(Path(path).read_text("ascii", "replace"), path)
    except FileNotFoundError:
        with suppress(ValueError):
            APIKey.parse(path)
            raise CommandError(
                f"an API key begins with '{APIKey.PREFIX}'; without that it is taken for a file"
            ) from None
        if or_command and "." not in path and "/" not in path:
            known = (*COMMAND.commands, *COMMAND.spellings)
            raise unknown_command(path, "identity", "kes identity", known, " or a file") from None
        raise CommandError(f"open {path}: no such file or directory") from None


def parse_blocks(text: str, name: str) -> list[pem.Block]:
    try:
        return pem.blocks(text)
    except ValueError as error:
        raise CommandError(f"'{name}': {error}") from None


def _as_json(info: "IdentityInfo", policy: "Policy | None") -> dict[str, object]:
    """As the API describes an identity, but that the policy is always an object."""
    about = known(created_at=info.created_at, created_by=info.created_by)
    if policy is not None:
        found = known(allow=rules(policy.allow), deny=rules(policy.deny))
        since = known(created_at=policy.created_at, created_by=policy.created_by)
        about["policy"] = {"name": policy.name, **found, **since}
    elif info.policy:
        about["policy"] = {"name": info.policy}
    return {"identity": info.identity, "admin": info.is_admin, **about}


def _print_rules(label: str, listed: tuple[str, ...], code: str, colour: bool) -> None:
    for index, rule in enumerate(listed):
        shown = "" if index else label
        print(f"{styled(shown, code, colour and not index)}{' ' * (12 - len(shown))}· {printable(rule)}")


_FROM_INPUT = "With '-' it is read from standard input."
CERTIFICATE_FLAGS = (
    Flag("ip", "An IP address for the certificate; may be repeated.", value="IP"),
    Flag("dns", "A DNS name for the certificate; may be repeated.", value="NAME"),
    Flag("force", "Overwrite files.", short="f"),
)

COMMAND = Group(
    "Make API keys and certificates, compute identities, look them up, and assign policies to them.",
    {
        "new": Command(
            "[SUBJECT]",
            "Make an API key, and a certificate from it.",
            new,
            (
                Flag("key", "Write the private key to this file.", value="FILE"),
                Flag("cert", "Write a self-signed certificate to this file.", value="FILE"),
                Flag("expiry", "How long the certificate is valid (default 720h).", value="DURATION"),
                Flag("encrypt", "Encrypt the private key with a password."),
                *CERTIFICATE_FLAGS,
            ),
            examples=("kes identity new", "kes identity new my-app --key my-app.key --cert my-app.crt --expiry 8760h"),
        ),
        "of": Command(
            "API-KEY|CERTIFICATE-FILE",
            "Compute an identity.",
            of,
            details=_FROM_INPUT,
            examples=("kes identity of my-app.crt", "kes identity of - <admin.apikey"),
        ),
        "info": Command(
            "[IDENTITY]",
            "Show what the server knows about an identity, or about the client itself.",
            info,
            (INSECURE, JSON, COLOUR, ENCLAVE),
            examples=("kes identity info", 'kes identity info "$(kes identity of my-app.crt)" --json'),
        ),
        "ls": Command(
            "[PREFIX]",
            "List identities.",
            list_,
            (INSECURE, JSON, COLOUR),
            examples=("kes identity ls", "kes identity ls --json"),
        ),
        "list": Command(
            "[PATTERN]",
            "List identities as in 2021: those that match a glob, one JSON object per line, with the policy.",
            list_2021,
            (INSECURE,),
            examples=("kes identity list",),
        ),
        "assign": Command(
            "IDENTITY POLICY",
            "Let a policy apply to an identity, instead of the one that it had.",
            assign_policy,
            (INSECURE,),
            details="'kes policy assign' takes the two in the other order, as since 2022.\n" + AT_RUN_TIME,
            examples=('kes identity assign "$(kes identity of my-app.crt)" my-app',),
        ),
        "rm": Command(
            "IDENTITY...",
            "Take their policies from identities.",
            remove,
            (INSECURE, ENCLAVE),
            details=AT_RUN_TIME,
            examples=('kes identity rm "$(kes identity of my-app.crt)"',),
        ),
    },
    spellings={"forget": "rm"},
    default=Command(
        "[API-KEY|FILE]",
        "Make API keys and certificates, compute identities, and look them up.",
        identity,
        details=(
            "Without an argument a new API key is made. Of an API key or certificate the identity is computed,\n"
            f"of an Ed25519 private key the API key. {_FROM_INPUT}"
        ),
        examples=("kes identity", "kes identity my-app.crt"),
    ),
)
