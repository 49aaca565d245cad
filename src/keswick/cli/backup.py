"""`kes backup` and `kes restore`: an encrypted folder as one file, and back."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from keswick.cli.command import Arguments, Command, CommandError, Flag
from keswick.cli.output import JSON, warn
from keswick.cli.terminal import is_terminal, printable, to_json

if TYPE_CHECKING:
    from keswick.backup import Open
    from keswick.keystore import StoreSection

# The configuration, the stores and the backup are imported late: `kes backup --help` has no use for them.

_SHOWN = 20
"""Names of a kind that are told one by one; JSON tells all."""


def backup(arguments: Arguments) -> None:
    section, file = _what(arguments)
    from keswick import backup

    folder = section.settings["path"]
    with _failing():
        report = backup.make(folder, file, overwrite=arguments.has("force"), open_seal=_seal(arguments, section))
    if is_terminal() and not arguments.has("json"):
        print(f"Backed up {_keys(len(report.names))} of '{printable(folder)}' to '{printable(str(file))}'")
    else:
        result = {
            "backup": str(file),
            "folder": folder,
            "keys": len(report.names),
            "verified": arguments.has("verify"),
            "foreign": report.foreign,
            "failed": report.failed,
        }
        print(to_json(result))
    _warn_each([f"'{name}' is not sealed, and is not in the backup" for name in report.foreign])
    _warn_each([f"'{name}' is not in the backup: {reason}" for name, reason in report.failed.items()])
    if report.failed:
        raise CommandError(f"the backup is made, but without {_keys(len(report.failed))} of the folder")


def restore(arguments: Arguments) -> None:
    section, file = _what(arguments)
    from keswick import backup

    folder, dry_run = section.settings["path"], arguments.has("dry-run")
    with _failing():
        backup.check_target(folder)
        names = backup.check(file, _seal(arguments, section))
        if not dry_run:
            backup.restore(file, folder)
    if not is_terminal() or arguments.has("json"):
        result = {
            "backup": str(file),
            "folder": folder,
            "keys": len(names),
            "verified": arguments.has("verify"),
            "dry_run": dry_run,
        }
        print(to_json(result | ({"names": names} if dry_run else {})))
    elif dry_run:
        for name in names:
            print(f"Would restore {printable(name)}")
        print("Nothing was changed: this was a dry run.")
    else:
        print(f"Restored {_keys(len(names))} of '{printable(str(file))}' to '{printable(folder)}'")


# --- what was asked for ---


def _what(arguments: Arguments) -> "tuple[StoreSection, Path]":
    """The encrypted folder of the configuration, and the file of the backup."""
    gc.enable()  # see main: this may run for long
    file = arguments.word(0, "backup file")
    arguments.at_most(1)
    config = arguments.value("config")
    if not config:
        arguments.fail("no configuration file specified: name it with '--config'")
    return encrypted_folder(config), Path(file)


def encrypted_folder(config: str) -> "StoreSection":
    """The key store of a configuration file, which has to be valid as a whole."""
    from keswick.cli.migrate import key_store

    section = key_store(config)
    if section.kind != "encryptedfs":
        raise CommandError(
            f"{config}: the key store is '{section.kind}', and this is for an encrypted folder ('encryptedfs') only: "
            "copy its keys into one with 'kes migrate' first"
        )
    return section


def _seal(arguments: Arguments, section: "StoreSection") -> "Open | None":
    """What opens the folder, when each key is to be tried."""
    if not arguments.has("verify"):
        return None
    from keswick.keystore import encryptedfs, seals

    seal = seals.of(section.settings)
    return lambda header: encryptedfs.opened(header, seal)


@contextmanager
def _failing() -> Iterator[None]:
    from keswick.backup import BackupError
    from keswick.keystore import KeyStoreError

    try:
        yield
    except (BackupError, KeyStoreError) as error:
        raise CommandError(str(error)) from None
    except FileExistsError as error:
        raise CommandError(f"'{error.filename}' already exists. Use --force to overwrite it") from None


# --- what is told ---


def _warn_each(lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        warn(line)
    if len(lines) > _SHOWN:
        warn(f"... and {len(lines) - _SHOWN} more like this; '--json' names them all")


def _keys(count: int) -> str:
    return f"{count} key{'' if count == 1 else 's'}"


_CONFIG = Flag("config", "The configuration file with the encrypted folder.", value="FILE")
_VERIFY = Flag("verify", "Open the seal, and try whether each key opens.")

COMMAND = Command(
    "BACKUP",
    "Back up an encrypted folder into one file.",
    backup,
    (_CONFIG, _VERIFY, Flag("force", "Overwrite what exists.", short="f"), JSON),
    details="The keys stay sealed, so that neither a passphrase nor a service is needed, and the file is as safe as\n"
    "the folder: keep what opens the seal elsewhere. A server may run meanwhile.",
    examples=(
        "kes backup --config config.yaml keys-2026-11-22.backup",
        "kes backup --config config.yaml --verify keys.backup --force",
    ),
)

RESTORE = Command(
    "BACKUP",
    "Restore an encrypted folder from a backup.",
    restore,
    (_CONFIG, _VERIFY, Flag("dry-run", "Read the backup and list its keys, change nothing."), JSON),
    details="The backup is read through first, and then becomes the folder that the configuration names, all of it or\n"
    "nothing. That folder must be empty or not exist.",
    examples=(
        "kes restore --config config.yaml --verify --dry-run keys.backup",
        "kes restore --config config.yaml keys.backup",
    ),
)
