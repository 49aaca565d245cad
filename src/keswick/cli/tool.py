"""`kes tool`: commands in the form that they had until 2021."""

from pathlib import Path

from keswick.cli.command import Arguments, Command, CommandError, Flag, Group
from keswick.cli.identity import (
    CERTIFICATE_FLAGS,
    certificate,
    parse_blocks,
    public_key_of_certificates,
    read_blocks,
    write_pair,
)
from keswick.cli.input import read_word
from keswick.cli.migrate import COMMAND as MIGRATE
from keswick.cli.terminal import is_terminal, write_value
from keswick.identity import APIKey

_HASHES = ("SHA256", "SHA384", "SHA512")


def new(arguments: Arguments) -> None:
    """Two files that only their owner can read, and not a word."""
    arguments.at_most(1)
    key, cert = arguments.value("key") or "./private.key", arguments.value("cert") or "./public.crt"
    if not arguments.has("force"):
        for what, file in (("private key", key), ("certificate", cert)):
            if Path(file).exists():
                raise CommandError(f'{what} "{file}" already exists: Use --force to overwrite it')
    is_server = arguments.has("server")
    pair = certificate(arguments, APIKey.generate(), "time", client=not is_server, server=is_server)
    try:
        write_pair(arguments, Path(key), pair.key_pem(), Path(cert), pair.certificate_pem, secret_cert=True)
    except FileExistsError as error:
        raise CommandError(f'"{error.filename}" already exists: Use --force to overwrite it') from None


def of(arguments: Arguments) -> None:
    import hashlib

    arguments.at_most(1)
    text = arguments.value("hash") or "SHA256"
    algorithm = text.upper().replace("-", "")
    if algorithm not in _HASHES:
        arguments.fail(f'invalid argument "{text}" for "--hash" flag: it is one of {", ".join(_HASHES)}')
    word = arguments.words[0] if arguments.words else "-"
    blocks = parse_blocks(read_word(arguments, "certificate"), "standard input") if word == "-" else read_blocks(word)
    der = public_key_of_certificates(blocks, "standard input" if word == "-" else word)
    identity = hashlib.new(algorithm, der).hexdigest()
    write_value(f"\n  Identity:  {identity}" if is_terminal() else identity)


IDENTITY = Group(
    "Make certificates, and compute identities.",
    {
        "new": Command(
            "[SUBJECT]",
            "Make a private key and a self-signed certificate.",
            new,
            (
                Flag("key", "Write the private key to this file (default ./private.key).", value="FILE"),
                Flag("cert", "Write the certificate to this file (default ./public.crt).", value="FILE"),
                Flag("time", "How long the certificate is valid (default 720h).", short="t", value="DURATION"),
                Flag("server", "A certificate for a server, not for a client."),
                *CERTIFICATE_FLAGS,
            ),
            examples=(
                "kes tool identity new --key=root.key --cert=root.cert root",
                "kes tool identity new --server --ip 127.0.0.1 --dns localhost --time 8760h localhost",
            ),
        ),
        "of": Command(
            "[CERTIFICATE-FILE]",
            "Compute an identity.",
            of,
            (
                Flag(
                    "hash",
                    "SHA256 (the default), SHA384 or SHA512.",
                    value="NAME",
                    choices=_HASHES,
                ),
            ),
            details="Without a file, or with '-', the certificate comes from standard input.",
            examples=("kes tool identity of root.cert", "kes tool identity of - <root.cert"),
        ),
    },
)

COMMAND = Group(
    "Commands in the form of 2021.",
    {
        "identity": IDENTITY,
        "migrate": MIGRATE._replace(examples=("kes tool migrate --from old.yaml --to new.yaml",)),
    },
)
