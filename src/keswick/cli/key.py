"""`kes key`: keys, and what is done with them."""

import base64
import binascii
import os
import re
import sys
from collections.abc import Callable, Iterable

from keswick.cli.command import Arguments, Command, CommandError, Flag, Group
from keswick.cli.connection import INSECURE, connect, failing
from keswick.cli.terminal import has_colour, is_terminal, to_json, write_value

JSON = Flag("json", "Print JSON.")
_IGNORED = Flag("enclave", "Accepted and ignored, as the original does.", short="e", value="NAME")
_COLOUR = Flag("color", "'always', 'auto' (the default) or 'never'.", value="WHEN")


def create(arguments: Arguments) -> None:
    arguments.word(0, "key name")
    for name in arguments.words:
        _refuse_key_as_name(name)
    with connect(arguments) as client:
        for name in arguments.words:
            with failing(f'failed to create key "{name}"'):
                client.create_key(name)


def import_(arguments: Arguments) -> None:
    arguments.at_most(2)
    name = arguments.word(0, "key name")
    _refuse_key_as_name(name)
    text = arguments.words[1] if len(arguments.words) > 1 else "-"
    if text == "-":
        if sys.stdin is None or (sys.stdin.isatty() and len(arguments.words) < 2):
            arguments.fail("no crypto key specified")
        text = sys.stdin.buffer.read(65536).decode("ascii", "replace").strip()
    if not text:
        arguments.fail("no crypto key specified")
    key = _base64(arguments, text, "key")
    if len(key) != 32:
        arguments.fail(f"invalid key: 32 bytes are needed, not {len(key)}")
    cipher = _cipher(arguments)
    with connect(arguments) as client, failing(f'failed to import key "{name}"'):
        client.import_key(name, key, cipher)


def info(arguments: Arguments) -> None:
    name = arguments.word(0, "key name")
    arguments.at_most(1)
    _colour(arguments)
    with connect(arguments) as client, failing(f'failed to describe key "{name}"'):
        key = client.describe_key(name)
    fields = {"name": key.name, "algorithm": key.algorithm, "created_at": key.created_at, "created_by": key.created_by}
    if arguments.has("json"):
        print(to_json({field: value for field, value in fields.items() if value}))
        return
    date = re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d).*", r"\1 \2", key.created_at)
    rows = (("Name", key.name), ("Algorithm", key.algorithm), ("Date", date), ("Owner", key.created_by))
    write_value("\n".join(f"{label:<11} {value}" for label, value in rows if value))


def list_(arguments: Arguments) -> None:
    arguments.at_most(1)
    with connect(arguments) as client, failing("failed to list keys"):
        names = sorted(client.list_keys("".join(arguments.words)))
    print_names("Key", names, arguments)


def list_2021(arguments: Arguments) -> None:
    arguments.at_most(1)
    with connect(arguments) as client, failing("failed to list keys"):
        for name in client.list_keys("".join(arguments.words)):
            print(name if is_terminal() else to_json({"name": name}))


def remove(arguments: Arguments) -> None:
    arguments.word(0, "key name")
    with connect(arguments) as client:
        for name in arguments.words:
            with failing(f'failed to delete key "{name}"'):
                client.delete_key(name)


def encrypt(arguments: Arguments) -> None:
    name = arguments.word(0, "key name")
    if len(arguments.words) < 2:
        arguments.fail("no message specified")
    arguments.at_most(2)
    message = os.fsencode(arguments.words[1])
    with connect(arguments) as client, failing("failed to encrypt message"):
        ciphertext = client.encrypt(name, message)
    _print_secrets(ciphertext=ciphertext)


def decrypt(arguments: Arguments) -> None:
    name = arguments.word(0, "key name")
    ciphertext = _base64(arguments, arguments.word(1, "ciphertext"), "ciphertext")
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


def print_names(header: str, names: Iterable[str], arguments: Arguments) -> None:
    """A list under its header; as JSON an array, null when it is empty."""
    names, colour = list(names), _colour(arguments)
    if arguments.has("json"):
        print(to_json(names or None))
    elif names:
        print("\n".join([f"\x1b[4m{header}\x1b[0m" if colour else header, *names]))


def _colour(arguments: Arguments) -> bool:
    when = (arguments.value("color") or "auto").lower()
    if when not in ("always", "auto", "never"):
        arguments.fail(f'invalid argument "{when}" for "--color" flag: invalid color option')
    return when == "always" or (when == "auto" and has_colour(sys.stdout))


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


def _base64(arguments: Arguments, text: str, what: str) -> bytes:
    from keswick.encoding import b64decode_go

    try:
        return b64decode_go(text)
    except ValueError:
        # The place that Go names: the first wrong character, or the beginning of the last, incomplete group.
        whole = re.match(r"(?:[A-Za-z0-9+/]{4})*", text)
        start = whole.end() if whole else 0
        wrong = re.search(r"[^A-Za-z0-9+/]", text[start:])
        arguments.fail(f"invalid {what}: illegal base64 data at input byte {start + (wrong.start() if wrong else 0)}")


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
    if len(name) != 44:
        return
    try:
        binascii.a2b_base64(name.replace("-", "+").replace("_", "/"), strict_mode=True)
    except ValueError:
        return
    raise CommandError(
        "a key name is a base64-encoded key; to import one use 'kes key import NAME' and give it on stdin"
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


COMMAND = Group(
    "Create, use and manage keys.",
    {
        "create": _command(
            "NAME...",
            "Create keys.",
            create,
            _IGNORED,
            examples=("kes key create my-key", "kes key create my-app-1 my-app-2"),
        ),
        "import": _command(
            "NAME [BASE64]",
            "Import a key of 32 bytes.",
            import_,
            Flag("cipher", "'AES256' (the default) or 'ChaCha20'.", value="NAME"),
            examples=("head -c 32 /dev/urandom | base64 | kes key import my-key",),
            details="Without BASE64, or with '-', the key comes from standard input, out of sight of the process list.",
        ),
        "info": _command(
            "NAME",
            "Show what is known about a key.",
            info,
            JSON,
            _COLOUR,
            _IGNORED,
            examples=("kes key info my-key", "kes key info my-key --json"),
        ),
        "ls": _command(
            "[PREFIX]",
            "List keys.",
            list_,
            JSON,
            _COLOUR,
            _IGNORED,
            examples=("kes key ls", "kes key ls my-app --json"),
        ),
        "list": _command(
            "[PREFIX]", "List keys as in 2021: one JSON object per line.", list_2021, examples=("kes key list 'my-*'",)
        ),
        "rm": _command(
            "NAME...", "Delete keys, at once and for ever.", remove, _IGNORED, examples=("kes key rm my-key",)
        ),
        "encrypt": _command(
            "NAME MESSAGE",
            "Encrypt a short message.",
            encrypt,
            _IGNORED,
            examples=("kes key encrypt my-key 'Hello World'",),
        ),
        "decrypt": _command(
            "NAME CIPHERTEXT [CONTEXT]",
            "Decrypt; both are base64.",
            decrypt,
            _IGNORED,
            examples=('kes key decrypt my-key "$CIPHERTEXT"', 'kes key decrypt my-key "$CIPHERTEXT" Y29udGV4dA=='),
        ),
        "dek": _command(
            "NAME [CONTEXT]",
            "Make a data key; the context is base64.",
            derive,
            _IGNORED,
            examples=("kes key dek my-key", "kes key dek my-key Y29udGV4dA=="),
        ),
    },
    spellings={"delete": "rm", "derive": "dek"},
)
