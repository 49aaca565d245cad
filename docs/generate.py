"""Writes what the code knows into the pages: the commands, and the keys of the configuration file.

A page marks each place, from `<!-- generated: configuration tls -->` to `<!-- end -->`, so that it is whole wherever it
is read. With --check nothing is written, and a page that is not as it would be written is an error.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from keswick.cli import COMMANDS, FLAGS  # noqa: E402 - the line above makes it known
from keswick.cli.command import HELP, Command, Flag, Group  # noqa: E402
from keswick.config import form2020, form2021, stores, transitional  # noqa: E402
from keswick.config.reference import reference  # noqa: E402
from keswick.config.translation import Form  # noqa: E402
from keswick.keystore.section import Setting  # noqa: E402

PLACE = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def main(arguments: Sequence[str]) -> str | None:
    """What is wrong, for `sys.exit`."""
    parts = {"commands": commands()}
    parts |= {f"configuration {section}".rstrip(): configuration(keys) for section, keys in reference().items()}
    parts |= {
        f"form {form.label}": form_of_old(form) for form in (form2020.FORM, form2021.FORM, transitional.WITH_RULES)
    }
    texts = {part: "\n".join(("", *lines, "")) for part, lines in parts.items()}
    pages = {page: page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))}
    places = [place[2] for text in pages.values() for place in PLACE.finditer(text)]
    if sorted(places) != sorted(parts):
        wrong = set(places) ^ set(parts) or {place for place in places if places.count(place) > 1}
        return f"There must be one place in docs/*.md for each of {', '.join(parts)}; look at: {', '.join(wrong)}"
    written = {
        page: PLACE.sub(lambda place: place[1] + texts[place[2]] + place[3], text) for page, text in pages.items()
    }
    stale = [page for page in pages if written[page] != pages[page]]
    if "--check" in arguments and stale:
        return f"{', '.join(str(page.relative_to(ROOT)) for page in stale)}: not as the code says; run 'make docs'"
    for page in stale:
        page.write_text(written[page])
    return None


# --- the configuration file ---


def configuration(keys: Sequence[Setting]) -> Iterator[str]:
    yield "| key | what to write | default | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        yield f"| `{key.name}` | {_value(key)} | {_default(key)} | {_meaning(key)} |"
    yield ""


def form_of_old(form: Form) -> Iterator[str]:
    yield "| key | today |"
    yield "|---|---|"
    for written, today in form.keys.items():
        name = f"`{'.'.join(today)}`"
        if stores.is_meaningless(today):
            name = "means nothing any more; a warning"
        yield f"| `{'.'.join(written)}` | {name} |"
    yield ""


def _value(key: Setting) -> str:
    if key.value.startswith("`"):  # all that can be written
        return key.value
    examples = [key.example] if isinstance(key.example, str) else key.example
    return f"{key.value}, such as {' and '.join(f'`{example}`' for example in examples)}"


def _default(key: Setting) -> str:
    if key.needed is not None:
        return f"required with `{key.needed}`" if key.needed else "required"
    return f"`{key.default}`" if key.default else key.otherwise


def _meaning(key: Setting) -> str:
    notes = ["not in the original"] if key.own else []
    if key.since != "0.1.0":
        notes.append(f"since {key.since}")
    return f"{key.meaning} ({', '.join(notes)})" if notes else key.meaning


# --- the commands ---


def commands() -> Iterator[str]:
    yield from ("## `kes`", "", "```text", "kes COMMAND", "kes [options]", "```", "", *_options(FLAGS))
    for name in COMMANDS:
        yield from _entry(f"kes {name}", import_module(f"keswick.cli.{name}").COMMAND, level=2)


def _entry(path: str, command: Command | Group, *, level: int) -> Iterator[str]:
    yield from (f"{'#' * level} `{path}`", "", _text(command.summary), "")
    if isinstance(command, Command):
        yield from _command(path, command)
        return
    if command.default is not None:
        yield from _command(path, command.default)
    for spelling, meant in command.spellings.items():
        yield from (f"`{path} {spelling}` is `{path} {meant}`.", "")
    for word, inner in command.commands.items():
        yield from _entry(f"{path} {word}", inner, level=min(level + 1, 4))


def _command(path: str, command: Command) -> Iterator[str]:
    options = "[options]" if command.flags else ""
    yield from ("```text", " ".join(filter(None, (path, options, command.arguments))), "```", "")
    if command.details:
        yield from (_text(command.details.strip()), "")
    yield from _options(command.flags)
    if command.examples:
        yield from ("```sh", *command.examples, "```", "")


def _options(flags: Sequence[Flag]) -> Iterator[str]:
    """All but `--help`, which every command has."""
    if flags := [flag for flag in flags if flag is not HELP]:
        yield from ("| option | meaning |", "|---|---|")
        for flag in flags:
            spelling = f"`--{flag.name} {flag.value}".rstrip().replace("|", "\\|") + "`"
            yield f"| {spelling}{f', `-{flag.short}`' if flag.short else ''} | {_text(flag.help)} |"
        yield ""


def _text(words: str) -> str:
    """What helps show is plain text, in which 'quotes' stand around what is to be typed."""
    escaped = re.sub(r"[\\`*<>|\[\]]", r"\\\g<0>", words)
    return re.sub(r"(?<!\w)'([^']+)'(?!\w)", lambda quoted: "`" + re.sub(r"\\(.)", r"\1", quoted[1]) + "`", escaped)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
