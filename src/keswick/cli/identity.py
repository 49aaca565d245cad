"""`kes identity`: API keys, certificates, and the identities of both. Nothing here talks to a server."""

import math
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from keswick import pem
from keswick.cli.command import Arguments, Command, CommandError, Flag, Group, unknown_command
from keswick.cli.terminal import ask_password, is_terminal, write_value
from keswick.files import NewFile, write_files
from keswick.identity import APIKey, identity_of, self_signed

if TYPE_CHECKING:
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
    word = arguments.word(0, "API key or file")
    if word.startswith(APIKey.PREFIX):
        write_value(_api_key(word).identity)
        return
    blocks = _read(word, or_command=True)
    for block in blocks:
        if block.label == "CERTIFICATE":
            write_value(_identity_of_certificate(block, word))
            return
        if block.is_private_key:
            write_value(_api_key_of(block, word).text)
            return
    raise CommandError(f"'{word}' contains no valid PEM certificate or private key")


def of(arguments: Arguments) -> None:
    word = arguments.word(0, "API key or certificate")
    arguments.at_most(1)
    if word.startswith(APIKey.PREFIX):
        found = _api_key(word).identity
    else:
        blocks = _read(word)
        if any(block.label != "CERTIFICATE" for block in blocks):
            raise CommandError(f"failed to parse certificate in '{word}': unsupported PEM data block")
        if not blocks:
            raise CommandError(f"failed to parse certificate in '{word}': no PEM certificate found")
        found = _identity_of_certificate(blocks[0], word)
    write_value(f"Identity:\n\n   {found}" if is_terminal() else found)


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

    if os.path.realpath(key_file) == os.path.realpath(cert_file):
        arguments.fail("the private key and the certificate need a file each")
    overwrite = arguments.has("force")
    for what, file in (("private key", key_file), ("certificate", cert_file)):
        if not overwrite and Path(file).exists():
            raise CommandError(f"{what} already exists. Use --force to overwrite it")
    key = APIKey.generate()
    pair = _certificate(arguments, key)
    password = _new_password() if arguments.has("encrypt") else None
    try:
        write_files(
            NewFile(Path(cert_file), pair.certificate_pem, secret=False),
            NewFile(Path(key_file), pair.key_pem(password), secret=True),
            overwrite=overwrite,
        )
    except FileExistsError as error:
        raise CommandError(f"'{error.filename}' already exists. Use --force to overwrite it") from None
    stored = (
        f"The generated TLS private key is stored at: {key_file}\n"
        f"The generated TLS certificate is stored at: {cert_file}\n\n"
    )
    print(_about(key, stored + _RECOMPUTE + f"\n   kes identity of {cert_file}"))


def _certificate(arguments: Arguments, key: APIKey) -> "KeyPair":
    subject = arguments.words[0] if arguments.words else key.identity
    try:
        return self_signed(
            subject,
            lifetime=_expiry(arguments),
            key=key,
            dns=arguments.values("dns"),
            ips=arguments.values("ip"),
            client=True,
            server=True,
        )
    except ValueError as error:
        raise CommandError(f"failed to create certificate: {error}") from None


def _expiry(arguments: Arguments) -> timedelta:
    text = arguments.value("expiry")
    if text is None:
        return DEFAULT_EXPIRY
    from keswick.config import duration

    try:
        seconds = duration.parse(text)
    except ValueError as error:
        arguments.fail(f'invalid argument "{text}" for "--expiry" flag: {error}')
    if seconds < 1:
        arguments.fail(f'invalid argument "{text}" for "--expiry" flag: a certificate is valid for a second at least')
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


def _api_key(text: str) -> APIKey:
    try:
        return APIKey.parse(text)
    except ValueError as error:
        raise CommandError(str(error)) from None


def _api_key_of(block: pem.Block, path: str) -> APIKey:
    try:
        der = pem.decrypt(block, ask_password("Enter password for private key: ")) if block.is_encrypted else block.der
        return APIKey.from_private_key(der)
    except ValueError as error:
        text = str(error)
        raise CommandError(f"'{path}' contains {text}" if text.startswith("unsupported") else text) from None


def _identity_of_certificate(block: pem.Block, path: str) -> str:
    from keswick._native import Certificate

    try:
        return identity_of(Certificate(block.der).public_key)
    except ValueError as error:
        raise CommandError(f"failed to parse certificate in '{path}': {error}") from None


def _read(path: str, *, or_command: bool = False) -> list[pem.Block]:
    """The PEM blocks of a file. `or_command`: whether the word may as well be a command that does not exist."""
    try:
        return pem.blocks(Path(path).read_text("ascii", "replace"))
    except FileNotFoundError:
        with suppress(ValueError):
            APIKey.parse(path)
            raise CommandError(
                f"an API key begins with '{APIKey.PREFIX}'; without that it is taken for a file"
            ) from None
        if or_command and "." not in path and "/" not in path:
            raise unknown_command(path, "identity", "kes identity", COMMAND.commands, " or a file") from None
        raise CommandError(f"open {path}: no such file or directory") from None
    except ValueError as error:
        raise CommandError(f"'{path}': {error}") from None


COMMAND = Group(
    "Make API keys and certificates, and compute identities.",
    {
        "new": Command(
            "[SUBJECT]",
            "Make an API key, and a certificate from it.",
            new,
            (
                Flag("key", "Write the private key to this file.", value="FILE"),
                Flag("cert", "Write a self-signed certificate to this file.", value="FILE"),
                Flag("ip", "An IP address for the certificate; may be repeated.", value="IP"),
                Flag("dns", "A DNS name for the certificate; may be repeated.", value="NAME"),
                Flag("expiry", "How long the certificate is valid (default 720h).", value="DURATION"),
                Flag("encrypt", "Encrypt the private key with a password."),
                Flag("force", "Overwrite files.", short="f"),
            ),
            examples=("kes identity new", "kes identity new my-app --key my-app.key --cert my-app.crt --expiry 8760h"),
        ),
        "of": Command(
            "API-KEY|CERTIFICATE-FILE",
            "Compute an identity.",
            of,
            examples=("kes identity of my-app.crt", 'kes identity of "$KES_API_KEY"'),
        ),
    },
    default=Command(
        "[API-KEY|FILE]",
        "Make API keys and certificates, and compute identities.",
        identity,
        details=(
            "Without an argument a new API key is made. Of an API key or certificate the identity is computed,\n"
            "of an Ed25519 private key the API key."
        ),
        examples=("kes identity", "kes identity my-app.crt"),
    ),
)
