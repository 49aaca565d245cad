"""`kes seal` and `kes unseal`: files and streams under data keys that a server keeps."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from keswick.cli.command import Arguments, Command, CommandError, Flag
from keswick.cli.connection import INSECURE, connect, failing
from keswick.files import PRIVATE, PUBLIC, new_file

if TYPE_CHECKING:
    from keswick.client.sealing import BinaryReader, BinaryWriter

_STANDARD = "-"  # standard input as a source, standard output as a target


def seal(arguments: Arguments) -> None:
    source, target, context = _what(arguments)
    key = arguments.value("key")
    if not key:
        arguments.fail("no key name specified: name a key of the server with '--key'")
    if target == _STANDARD and sys.stdout is not None and sys.stdout.isatty():
        arguments.fail("a sealed file is nothing for a terminal: name a file with '--output', or write it into a pipe")
    with connect(arguments) as client, failing(f"failed to seal {_name(source)}"), _overwriting():
        if _STANDARD not in (source, target):
            client.seal(source, target, key=key, context=context, overwrite=arguments.has("force"))
            return
        with _reader(arguments, source) as reader, _writer(arguments, target, PUBLIC) as writer:
            client.seal_stream(reader, writer, key=key, context=context)


def unseal(arguments: Arguments) -> None:
    source, target, context = _what(arguments)
    with connect(arguments) as client, failing(f"failed to unseal {_name(source)}"), _overwriting():
        if _STANDARD not in (source, target):
            client.unseal(source, target, context=context, overwrite=arguments.has("force"))
            return
        with _reader(arguments, source) as reader, _writer(arguments, target, PRIVATE) as writer:
            client.unseal_stream(reader, writer, context=context)


def _what(arguments: Arguments) -> tuple[str, str | None, bytes]:
    """Source, target and context."""
    from keswick.encoding import b64decode_go

    gc.enable()  # see main: this may run for long
    source = arguments.word(0, "file")
    arguments.at_most(1)
    # What comes from standard input goes to standard output, unless a file is named.
    target = arguments.value("output") or (_STANDARD if source == _STANDARD else None)
    try:
        return source, target, b64decode_go(arguments.value("context") or "")
    except ValueError:
        arguments.fail("invalid context: it must be base64")


def _name(source: str) -> str:
    return "standard input" if source == _STANDARD else f'"{source}"'


@contextmanager
def _overwriting() -> "Iterator[None]":
    try:
        yield
    except FileExistsError as error:
        raise CommandError(f"'{error.filename}' already exists. Use --force to overwrite it") from None


@contextmanager
def _reader(arguments: Arguments, source: str) -> "Iterator[BinaryReader]":
    if source != _STANDARD:
        with open(source, "rb", buffering=0) as reader:
            yield reader
    elif sys.stdin is None:
        arguments.fail("there is nothing to read: standard input is closed")
    elif sys.stdin.isatty():
        arguments.fail("there is nothing to read: standard input is a terminal; name a file, or write into a pipe")
    else:
        yield sys.stdin.buffer


@contextmanager
def _writer(arguments: Arguments, target: str | None, mode: int) -> "Iterator[BinaryWriter]":
    if target is not None and target != _STANDARD:
        with new_file(Path(target), mode=mode, overwrite=arguments.has("force")) as draft:
            yield draft
    elif sys.stdout is None:
        arguments.fail("there is nobody to write to: standard output is closed")
    else:
        yield sys.stdout.buffer


_COMMON = (
    Flag("output", "The file to write; '-' is standard output.", short="o", value="FILE"),
    Flag("context", "What the file is bound to, in base64; to be given again to unseal.", value="BASE64"),
    Flag("force", "Overwrite what exists.", short="f"),
    INSECURE,
)

COMMAND = Command(
    "FILE",
    "Seal a file under a key of the server.",
    seal,
    (
        Flag(
            "key", "The key of the server, which the client has to be allowed to generate data keys with.", value="NAME"
        ),
        *_COMMON,
    ),
    details="The file is encrypted here, of any size, with a data key of its own; the server does not see it. The\n"
    "sealed file is called FILE.sealed unless '--output' names another. With '-' as FILE, standard input is sealed\n"
    "to standard output.",
    examples=(
        "kes seal backup.tar --key my-key",
        "tar -c folder | kes seal - --key my-key >folder.tar.sealed",
        "kes seal backup.tar --key my-key -o sealed/backup --context bW9uZGF5",
    ),
)

UNSEAL = Command(
    "FILE",
    "Unseal what 'kes seal' made.",
    unseal,
    _COMMON,
    details="The file names its key, which the client has to be allowed to decrypt with. FILE.sealed becomes FILE,\n"
    "unless '--output' names another; it appears when all of it was found to be what was sealed.\n\n"
    "To standard output it goes piece by piece: each piece is authentic, but that the file is whole shows only at\n"
    "its end. Do not use what came if the exit code is not 0.",
    examples=(
        "kes unseal backup.tar.sealed",
        "kes unseal backup.tar.sealed -o restored.tar",
        "kes unseal folder.tar.sealed -o - | tar -t",
    ),
)
