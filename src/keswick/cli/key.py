"""`kes key`: keys, and what is done with them."""

import base64
import binascii
import os
import re
from collections.abc import Callable

from keswick.cli import pattern
from keswick.cli.command import Arguments, Command, CommandError, Flag, Group
from keswick.cli.connection import INSECURE, connect, failing
from keswick.cli.input import read_bytes, read_word
from keswick.cli.output import COLOUR, ENCLAVE, JSON, date, known, labelled, print_names, wants_colour
from keswick.cli.progress import Progress
from keswick.cli.terminal import is_terminal, printable, to_json, write_value

_MOST_MESSAGE = 700 << 10  # bytes; in base64 this is as much as a server takes


def create(arguments: Arguments) -> None:
    arguments.word(0, "key name")
    for name in arguments.words:
        _refuse_key_as_name(name)
    with connect(arguments) as client, Progress("Creating keys", len(arguments.words)) as progress:
        for name in arguments.words:
            with failing(f'failed to create key "{name}"', changes=True):
                client.create_key(name)
            progress.advance()


def import_(arguments: Arguments) -> None:
    arguments.at_most(2)
    name = arguments.word(0, "key name")
    _refuse_key_as_name(name)
    text = arguments.words[1] if len(arguments.words) > 1 else "-"
    if not text:
        arguments.fail("no crypto key specified")
    key = _base64(arguments, text, "crypto key", "key")
    if len(key) != 32:
        arguments.fail(f"invalid key: 32 bytes are needed, not {len(key)}")
    cipher = _cipher(arguments)
    with connect(arguments) as client, failing(f'failed to import key "{name}"', changes=True):
        client.import_key(name, key, cipher)


def info(arguments: Arguments) -> None:
    name = arguments.word(0, "key name")
    arguments.at_most(1)
    wants_colour(arguments)  # there is none, but a wrong word is told
    with connect(arguments) as client, failing(f'failed to describe key "{name}"'):
        key = client.describe_key(name)
    if arguments.has("json"):
        about = known(algorithm=key.algorithm, created_at=key.created_at, created_by=key.created_by)
        print(to_json({"name": key.name, **about}))
        return
    rows = (("Name", key.name), ("Algorithm", key.algorithm), ("Date", date(key.created_at)), ("Owner", key.created_by))
    write_value(labelled(*rows))


def list_(arguments: Arguments) -> None:
    arguments.at_most(1)
    with connect(arguments) as client, failing("failed to list keys"):
        names = sorted(client.list_keys("".join(arguments.words)))
    print_names("Key", names, arguments)


def list_2021(arguments: Arguments) -> None:
    prefix, matches = pattern.glob(arguments)
    with connect(arguments) as client, failing("failed to list keys"):
        for name in filter(matches, client.list_keys(prefix)):
            print(printable(name) if is_terminal() else to_json({"name": name}))


def remove(arguments: Arguments) -> None:
    arguments.word(0, "key name")
    with connect(arguments) as client, Progress("Deleting keys", len(arguments.words)) as progress:
        for name in arguments.words:
            with failing(f'failed to delete key "{name}"', changes=True):
                client.delete_key(name)
            progress.advance()


def encrypt(arguments: Arguments) -> None:
    name = arguments.word(0, "key name")
    if len(arguments.words) < 2:
        arguments.fail("no message specified")
    arguments.at_most(2)
    word = arguments.words[1]
    if word == "-":
        message = read_bytes(arguments, "message", most=_MOST_MESSAGE, advice="; 'kes seal' seals files of any size")
    else:
        message = os.fsencode(word)
    with connect(arguments) as client, failing("failed to encrypt message"):
        ciphertext = client.encrypt(name, message)
    _print_secrets(ciphertext=ciphertext)


def decrypt(arguments: Arguments) -> None:
    name = arguments.word(0, "key name")
    text = arguments.word(1, "ciphertext")
    arguments.at_most(3)
    if text == "-" and arguments.words[2:] == ["-"]:
        arguments.fail("only one of ciphertext and context can be on standard input")
    ciphertext = _base64(arguments, text, "ciphertext")
    context = _context(arguments, 2)
    with connect(arguments) as client, failing("failed to decrypt ciphertext"):
        plaintext = client.decrypt(name, ciphertext, context)
    _print_secrets(plaintext=plaintext)


def derive(arguments: Arguments) -> None:
    name = arguments.word(0, "key name")
    context = _context(arguments, 1)
    with connect(arguments) as client, failing("failed to derive key"):
        key = client.generate_key(name, context)
    _print_secrets(plaintext=key.plaintext, ciphertext=key.ciphertext)


def _print_secrets(**values: bytes) -> None:
    texts = {name: base64.b64encode(value).decode() for name, value in values.items()}
    if is_terminal():
        print()
        for name, text in texts.items():
            label = f"{name}:"
            print(f"{label:<11}" if len(texts) > 1 else label, text)
    else:
        write_value(to_json(texts))


def _context(arguments: Arguments, index: int) -> bytes:
    arguments.at_most(index + 1)
    return _base64(arguments, arguments.words[index], "context") if len(arguments.words) > index else b""


def _base64(arguments: Arguments, text: str, what: str, short: str = "") -> bytes:
    """The bytes of an argument or of standard input. `what` it is called when missing, and `short` when wrong."""
    from keswick.encoding import b64decode_go

    if text == "-":
        text = read_word(arguments, what)
    try:
        return b64decode_go(text)
    except ValueError:
        # The place that Go names: the first wrong character, or the beginning of the last, incomplete group.
        whole = re.match(r"(?:[A-Za-z0-9+/]{4})*", text)
        start = whole.end() if whole else 0
        wrong = re.search(r"[^A-Za-z0-9+/]", text[start:])
        place = start + (wrong.start() if wrong else 0)
        arguments.fail(f"invalid {short or what}: illegal base64 data at input byte {place}")


def _cipher(arguments: Arguments) -> str:
    name = arguments.value("cipher")
    if name is None:
        return "AES256"
    from keswick.crypto.algorithms import BY_NAME

    if name not in BY_NAME:
        arguments.fail(f'invalid argument "{name}" for "--cipher" flag: it is one of {", ".join(BY_NAME)}')
    return name


def _refuse_key_as_name(name: str) -> None:
    """Until 2021 `key create NAME KEY` imported a key; today the secret would travel as a name and be logged."""
    text = name.strip().replace("-", "+").replace("_", "/")
    if len(text) != 44:  # 32 bytes with their padding; without it, as nobody wrote it, many names look like that
        return
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return
    raise CommandError(
        "a key name is a base64-encoded key; until 2021 'key create' imported one that followed its name, now use "
        "'kes key import NAME' and give it on stdin"
    )


def _command(
    arguments: str,
    summary: str,
    run: Callable[[Arguments], None],
    *flags: Flag,
    examples: tuple[str, ...],
    details: str = "",
) -> Command:
    return Command(arguments, summary, run, (INSECURE, *flags), details, examples)


_FROM_INPUT = "With '-' as {}, it comes from standard input."

COMMAND = Group(
    "Create, use and manage keys.",
    {
        "create": _command(
            "NAME...",
            "Create keys.",
            create,
            ENCLAVE,
            examples=("kes key create my-key", "kes key create my-app-1 my-app-2"),
        ),
        "import": _command(
            "NAME [BASE64]",
            "Import a key of 32 bytes.",
            import_,
            Flag("cipher", "'AES256' (the default) or 'ChaCha20'.", value="NAME", choices=("AES256", "ChaCha20")),
            examples=("head -c 32 /dev/urandom | base64 | kes key import my-key",),
            details="Without BASE64, or with '-', the key comes from standard input, out of sight of the process list.",
        ),
        "info": _command(
            "NAME",
            "Show what is known about a key.",
            info,
            JSON,
            COLOUR,
            ENCLAVE,
            examples=("kes key info my-key", "kes key info my-key --json"),
        ),
        "ls": _command(
            "[PREFIX]",
            "List keys.",
            list_,
            JSON,
            COLOUR,
            ENCLAVE,
            examples=("kes key ls", "kes key ls my-app --json"),
        ),
        "list": _command(
            "[PATTERN]",
            "List keys as in 2021: those that match a glob, one JSON object per line.",
            list_2021,
            examples=("kes key list 'my-*'",),
        ),
        "rm": _command(
            "NAME...", "Delete keys, at once and for ever.", remove, ENCLAVE, examples=("kes key rm my-key",)
        ),
        "encrypt": _command(
            "NAME MESSAGE",
            "Encrypt a short message.",
            encrypt,
            ENCLAVE,
            examples=("kes key encrypt my-key 'Hello World'", "kes key encrypt my-key - <secret.txt"),
            details=_FROM_INPUT.format("MESSAGE"),
        ),
        "decrypt": _command(
            "NAME CIPHERTEXT [CONTEXT]",
            "Decrypt; both are base64.",
            decrypt,
            ENCLAVE,
            examples=('kes key decrypt my-key "$CIPHERTEXT"', 'kes key decrypt my-key "$CIPHERTEXT" Y29udGV4dA=='),
            details=_FROM_INPUT.format("CIPHERTEXT or CONTEXT"),
        ),
        "dek": _command(
            "NAME [CONTEXT]",
            "Make a data key; the context is base64.",
            derive,
            ENCLAVE,
            examples=("kes key dek my-key", "kes key dek my-key Y29udGV4dA=="),
            details=_FROM_INPUT.format("CONTEXT"),
        ),
    },
    spellings={"delete": "rm", "derive": "dek"},
)
