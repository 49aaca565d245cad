"""`kes migrate`: move keys from one key store to another."""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from keswick.cli.command import Arguments, Command, CommandError, Flag
from keswick.cli.output import JSON
from keswick.cli.terminal import is_terminal, printable, to_json

if TYPE_CHECKING:
    from keswick.keystore import KeyStore, StoreSection
    from keswick.migration import Existing, Journal, Report

# The configuration, the stores and the migration are imported late: `kes migrate --help` has no use for them.

_SHOWN = 20
"""Names of a kind that are told one by one; `--json` tells all."""
_KMS = ("server", "enclave", "api-key")


def migrate(arguments: Arguments) -> int:
    gc.enable()  # see main: this is what may run for long
    from keswick.migration import Existing, Migration

    source_file, target_file = _files(arguments)
    existing, pattern, dry_run = _existing(arguments), _pattern(arguments), arguments.has("dry-run")
    source_section, target_section = key_store(source_file), key_store(target_file)
    _refuse_same(source_section, target_section)
    silent = arguments.has("quiet") or arguments.has("json")

    journal_path = Path(f"{os.path.realpath(target_file)}.migration-journal")
    with ExitStack() as stack:
        source = stack.enter_context(closing(_open_source(source_section)))
        if dry_run:
            _announce_journal(journal_path, _place(target_section))
            journal = None
        elif journal := _open_journal(journal_path, _place(target_section), needed=existing is Existing.REPLACE):
            stack.enter_context(journal)
        target = stack.enter_context(closing(_open_target(target_section, dry_run)))
        migration = Migration(source, target, pattern=pattern, existing=existing, journal=journal, dry_run=dry_run)
        if not silent:
            print("Starting key migration:\n", flush=True)
        with _progress(silent) as tick:
            report = migration.run(tick)
        if journal is not None and report.complete:
            journal.clear()
        kept = journal_path if journal is not None and not journal.is_empty else None

    if arguments.has("json"):
        print(to_json(_as_json(report, kept, dry_run)))
    elif not silent:
        _print_result(report, dry_run)
    _print_names(report, merge=existing is Existing.KEEP)
    if arguments.words and not report.total and not report.stopped:
        _tell(f"Warning: no key of the source matches '{printable(pattern)}'")
    if kept:
        _tell(f"Values that were deleted at the target are in '{kept}', until a migration ends well")
    if not report.complete:
        raise CommandError(_verdict(report))
    return 0


# --- what was asked for ---


def _files(arguments: Arguments) -> tuple[str, str]:
    if len(arguments.words) > 1:
        raise CommandError("too many arguments")
    if any(arguments.has(flag) for flag in _KMS):
        raise CommandError("a MinIO KMS server as the target is not supported. Use '--to' with a configuration file")
    source, target = arguments.value("from"), arguments.value("to")
    if not source:
        raise CommandError("no source specified. Use '--from' flag")
    if not target:
        raise CommandError("missing migration target. Use '--to'")
    return source, target


def _existing(arguments: Arguments) -> "Existing":
    from keswick.migration import Existing

    if arguments.has("force") and arguments.has("merge"):
        raise CommandError("'--force' and '--merge' flags are mutually exclusive")
    if arguments.has("force"):
        return Existing.REPLACE
    return Existing.KEEP if arguments.has("merge") else Existing.REFUSE


def _pattern(arguments: Arguments) -> str:
    from keswick import policy

    pattern = arguments.words[0] if arguments.words else "*"
    try:
        policy.check(pattern)
    except policy.PatternError as error:
        raise CommandError(str(error)) from None
    return pattern


def key_store(file: str) -> "StoreSection":
    """The key store of a configuration file, which has to be valid as a whole; its TLS files are not looked at."""
    from keswick import config
    from keswick.server.routes import APIS

    try:
        return config.load(file, apis=APIS).keystore
    except config.ConfigError as error:
        raise CommandError(str(error)) from None


def _refuse_same(source: "StoreSection", target: "StoreSection") -> None:
    """Two descriptions of one store over a network may escape this; then all its keys are there, and equal."""
    from keswick import keystore

    ours, theirs = keystore.folder(source), keystore.folder(target)
    same = source == target
    if ours is not None and theirs is not None and not same:
        same = ours.resolve() == theirs.resolve() or (ours.exists() and theirs.exists() and ours.samefile(theirs))
    if same:
        raise CommandError("source and target are the same key store: name two configurations of different ones")


def _place(section: "StoreSection") -> str:
    """Which store it is, without secrets: those lie in sections of their own."""
    from keswick import keystore

    folder = keystore.folder(section)
    if folder is not None:
        return f"{section.kind} {folder.resolve()}"
    settings = section.settings
    return " ".join([section.kind, *(f"{key}={settings[key]}" for key in sorted(settings) if "." not in key)])


# --- the two stores and the journal ---


def _open_source(section: "StoreSection") -> "KeyStore":
    from keswick import keystore

    folder = keystore.folder(section)
    if folder is not None and not os.path.lexists(folder):  # to open it would make it
        raise CommandError(f"source: the key folder '{folder}' is not there")
    if _is_new("source", section):
        raise CommandError(f"source: the key folder '{folder}' is empty, and has no header: is it mounted?")
    return _open("source", section)


def _open_target(section: "StoreSection", dry_run: bool) -> "KeyStore":
    from keswick import keystore

    if dry_run and _is_new("target", section):
        return _open("target", keystore.MEMORY)  # as empty as the folder that is not made
    return _open("target", section)


def _is_new(side: str, section: "StoreSection") -> bool:
    from keswick import keystore

    with _naming(side):
        return keystore.is_new(section)


def _open(side: str, section: "StoreSection") -> "KeyStore":
    from keswick import keystore

    with _naming(side):
        return keystore.open(section)


@contextmanager
def _naming(side: str) -> Iterator[None]:
    """Errors say which of the two stores it is."""
    from keswick.keystore import KeyStoreError

    try:
        yield
    except KeyStoreError as error:
        raise CommandError(f"{side}: {error}") from None


def _open_journal(path: Path, place: str, *, needed: bool) -> "Journal | None":
    """None where it cannot be written and is not needed, since nothing is deleted and nothing has been."""
    from keswick.migration import Journal

    with _failing(path):
        try:
            return Journal(path, place)
        except OSError:
            if needed or os.path.lexists(path):
                raise
            return None


def _announce_journal(path: Path, place: str) -> None:
    from keswick.migration import read_journal

    with _failing(path):
        entries = read_journal(path, place)
    if entries:
        _tell(
            "Warning: an earlier migration did not end well. The next one first puts back what the target lacks of "
            f"the {_keys(len(entries))} in '{path}'"
        )


@contextmanager
def _failing(journal: Path) -> Iterator[None]:
    from keswick.migration import MigrationError

    try:
        yield
    except MigrationError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(
            f"the journal '{journal}' cannot be used ({error.strerror}): put the target's configuration into a folder "
            "that you can write to"
        ) from None


# --- what is told ---


@contextmanager
def _progress(silent: bool) -> Iterator[Callable[["Report"], None]]:
    """What to call again and again: a bar for people, a line each second for others."""
    if silent:
        yield lambda report: None
    elif is_terminal():
        from keswick.cli.progress import Progress

        with ExitStack() as stack:
            bars: list[Progress] = []

            def advance(report: "Report") -> None:
                if not bars:  # not before the total is known
                    bars.append(stack.enter_context(Progress("Migrating keys", report.total)))
                bars[0].advance(report.tried - bars[0].done)

            yield advance
    else:
        last = time.monotonic()

        def count(report: "Report") -> None:
            nonlocal last
            if time.monotonic() - last >= 1:
                last = time.monotonic()
                print(f"Migrated {report.migrated:6} {'keys' if report.migrated > 1 else 'key '} ...", flush=True)

        yield count


def _print_result(report: "Report", dry_run: bool) -> None:
    from keswick.migration import Outcome

    if dry_run:
        for outcome, action in ((Outcome.COPIED, "copy"), (Outcome.REPLACED, "replace")):
            for name in report.names(outcome):
                print(f"Would {action} {printable(name)}")
        print("Nothing was changed: this was a dry run.")
    elif report.complete and report.migrated:
        print(f"Migrated {report.migrated:6} {'keys' if report.migrated > 1 else 'key'} successfully!")
    elif report.complete:
        print("Migration succeeded! No keys migrated.")
    print(_summary(report))


def _summary(report: "Report") -> str:
    always = ("read", "copied", "skipped", "foreign", "failed")
    counts = _counts(report).items()
    return "Keys: " + ", ".join(f"{count} {what}" for what, count in counts if count or what in always)


def _counts(report: "Report") -> dict[str, int]:
    from keswick.migration import Outcome

    return {
        "read": report.read,
        "copied": report.count(Outcome.COPIED),
        "skipped": report.count(Outcome.SKIPPED),
        "replaced": report.count(Outcome.REPLACED),
        "restored": report.restored,
        "different": report.count(Outcome.DIFFERS),
        "foreign": report.count(Outcome.FOREIGN),
        "failed": len(report.failures),
        "not tried": max(0, report.total - report.tried),
    }


def _as_json(report: "Report", journal: Path | None, dry_run: bool) -> dict[str, object]:
    from keswick.migration import Outcome

    return {
        "complete": report.complete,
        "dry_run": dry_run,
        **{what.replace(" ", "_"): count for what, count in _counts(report).items()},
        "names": {
            "different": report.names(Outcome.DIFFERS),
            "foreign": report.names(Outcome.FOREIGN),
            "failed": report.failures,
        },
        "error": None if report.complete else _verdict(report),
        "journal": None if journal is None else str(journal),
    }


def _print_names(report: "Report", *, merge: bool) -> None:
    """What needs somebody's eye, by name. Without `merge` the error tells of keys that differ."""
    from keswick.migration import Outcome

    kept = report.names(Outcome.DIFFERS) if merge else []
    _tell_each(
        [
            f"Warning: '{name}' is no key and was not copied{why and f': {why}'}"
            for name, why in sorted(report.foreign.items())
        ]
    )
    _tell_each([f"Warning: '{name}' was not copied: the target keeps another key of this name" for name in kept])
    _tell_each([f"Failed to migrate '{name}': {reason}" for name, reason in report.failures.items()])


def _tell_each(lines: Sequence[str]) -> None:
    for line in lines[:_SHOWN]:
        _tell(line)
    if len(lines) > _SHOWN:
        _tell(f"... and {len(lines) - _SHOWN} more like this; '--json' names them all")


def _verdict(report: "Report") -> str:
    """Why not every key of the source is at the target."""
    from keswick.migration import Outcome

    if report.stopped:
        return report.stopped
    missing = []
    if report.failures:
        missing.append(f"{_keys(len(report.failures))} failed")
    if different := report.count(Outcome.DIFFERS):
        missing.append(f"{_keys(different)} would have to replace another, which the target keeps")
    return f"not every key of the source is at the target: {'; '.join(missing)}"


def _keys(count: int) -> str:
    return f"{count} key{'' if count == 1 else 's'}"


def _tell(line: str) -> None:
    if sys.stderr is not None:  # for `print`, None is standard output
        print(printable(line), file=sys.stderr)


COMMAND = Command(
    "[PATTERN]",
    "Move keys from one key store to another.",
    migrate,
    (
        Flag("from", "The configuration file with the key store to read.", value="FILE"),
        Flag("to", "The configuration file with the key store to copy to.", value="FILE"),
        Flag("merge", "Keep what the target has under a name, and go on."),
        Flag("force", "Replace other keys of the same name at the target.", short="f"),
        Flag("dry-run", "Read and compare everything, change nothing, say what would be done."),
        Flag("quiet", "Print errors and warnings only.", short="q"),
        JSON,
        Flag("server", "A MinIO KMS server as the target: not supported.", short="s", value="HOST:PORT"),
        Flag("enclave", "An enclave of a MinIO KMS server: not supported.", short="e", value="NAME"),
        Flag("api-key", "The API key for a MinIO KMS server: not supported.", short="a", value="KEY"),
    ),
    details="""
PATTERN selects keys by name: '*' stands for anything, '?' for one character, '[a-z]' for one of several. Nothing is
deleted at the source. A run that was interrupted, or killed, goes on when it is started again in the same words.
""",
    examples=(
        "kes migrate --from old.yaml --to new.yaml --dry-run",
        "kes migrate --from old.yaml --to new.yaml",
        "kes migrate --from old.yaml --to new.yaml --merge 'my-app-*'",
    ),
)
