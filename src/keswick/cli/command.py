"""Commands as data, and how their arguments are read: flags anywhere, with one dash or two, as in all generations."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, NoReturn


class CommandError(Exception):
    """What the user reads behind `Error: `."""


class Flag(NamedTuple):
    name: str
    help: str
    short: str = ""
    value: str = ""
    """What the value is called in the help; empty for a switch."""
    choices: tuple[str, ...] = ()
    """What a shell offers as the value."""


class Arguments:
    """What the user wrote: the words that are no flags, and the flags by name."""

    def __init__(self, path: str) -> None:
        self.path = path
        """The command as it was called, such as `kes key create`."""
        self.words: list[str] = []
        self.flags: dict[str, list[str]] = {}

    def has(self, flag: str) -> bool:
        return flag in self.flags

    def value(self, flag: str) -> str | None:
        """The last one given."""
        return self.flags[flag][-1] if flag in self.flags else None

    def values(self, flag: str) -> list[str]:
        """All that were given, one flag each or separated by commas."""
        return [part.strip() for text in self.flags.get(flag, []) for part in text.split(",")]

    def at_most(self, count: int) -> None:
        if len(self.words) > count:
            self.fail("too many arguments")

    def word(self, index: int, what: str) -> str:
        """The word at `index`; without it the error is that no `what` was specified."""
        if index >= len(self.words) or not self.words[index]:
            self.fail(f"no {what} specified")
        return self.words[index]

    def fail(self, message: str) -> NoReturn:
        """An error in how the command was called: the message and where its help is."""
        raise CommandError(_with_help(message, self.path))


class Command(NamedTuple):
    arguments: str
    """What follows the name, for the usage line."""
    summary: str
    run: Callable[[Arguments], int | None]
    """Its result is the exit code; None is 0."""
    flags: tuple[Flag, ...] = ()
    details: str = ""
    examples: tuple[str, ...] = ()
    """Whole lines, as one types them into a shell."""


class Group(NamedTuple):
    """A command with commands of its own."""

    summary: str
    commands: Mapping[str, "Command | Group"]
    spellings: Mapping[str, str] = {}
    """Other names of the commands, from other generations."""
    default: Command | None = None
    """What runs when the first word is none of the commands."""


HELP = Flag("help", "Print this help.", short="h")


class HelpWanted(Exception):
    """The text to print on stderr."""


def parse(words: list[str], path: str, flags: tuple[Flag, ...]) -> Arguments:
    """Read the words that follow a command's name. Raises CommandError, or HelpWanted without a text."""
    arguments = Arguments(path)
    by_name = {flag.name: flag for flag in (*flags, HELP)}
    by_letter = {flag.short: flag for flag in by_name.values() if flag.short}
    queue = list(words)

    def take(flag: Flag, given: str | None, written: str) -> None:
        if flag is HELP:
            raise HelpWanted
        if not flag.value:
            if given not in (None, "true", "false"):
                arguments.fail(f'invalid argument "{given}" for "{written}" flag: it takes no value')
            if given != "false":
                arguments.flags[flag.name] = []
            return
        if given is None:
            if not queue:
                arguments.fail(f"flag needs an argument: {written}")
            given = queue.pop(0)
        arguments.flags.setdefault(flag.name, []).append(given)

    while queue:
        word = queue.pop(0)
        if word == "--":
            arguments.words += queue
            break
        if not word.startswith("-") or word == "-":
            arguments.words.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        given = value if equals else None
        if name in by_name:
            take(by_name[name], given, f"--{name}")
        elif word.startswith("--"):
            arguments.fail(f"unknown flag: --{name}{did_you_mean(name, by_name, '--')}")
        else:
            _take_letters(word[1:], by_letter, take, arguments)
    return arguments


def _take_letters(
    letters: str, by_letter: dict[str, Flag], take: Callable[[Flag, str | None, str], None], arguments: Arguments
) -> None:
    """`-k`, several switches as `-kf`, or a value as `-sHOST` and `-s=HOST`."""
    for index, letter in enumerate(letters):
        flag = by_letter.get(letter)
        if flag is None:
            arguments.fail(f"unknown shorthand flag: '{letter}' in -{letters}")
        rest = letters[index + 1 :]
        if flag.value or rest.startswith("="):
            take(flag, rest.removeprefix("=") if rest else None, f"-{letter}")
            return
        take(flag, None, f"-{letter}")


def run(name: str, command: Command | Group, words: list[str]) -> int | None:
    """`name`: what the command is called behind `kes`; `words`: what follows. The exit code, None is 0."""
    if isinstance(command, Group):
        return _run_group(name, command, words)
    path = f"kes {name}"
    try:
        arguments = parse(words, path, command.flags)
    except HelpWanted:
        raise HelpWanted(command_help(path, command)) from None
    return command.run(arguments)


def _run_group(name: str, group: Group, words: list[str]) -> int | None:
    """Find the command that the first word names and run it."""
    path = f"kes {name}"
    first = words[0] if words else ""
    chosen = group.spellings.get(first, first)
    if chosen in group.commands:
        return run(f"{name} {first}", group.commands[chosen], words[1:])
    if first in ("-h", "-help", "--help") or (not words and group.default is None):
        raise HelpWanted(group_help(path, group))
    if group.default is not None:
        return run(name, group.default, words)
    if first.startswith("-"):
        parse(words[:1], path, ())
    raise unknown_command(first, name, path, (*group.commands, *group.spellings))


def unknown_command(word: str, group: str, path: str, known: Iterable[str], otherwise: str = "") -> CommandError:
    """`otherwise`: what else the word might have been, such as ` or a file`."""
    return CommandError(_with_help(_no_command(word, group) + otherwise + did_you_mean(word, known), path))


def _no_command(word: str, group: str) -> str:
    article = "an" if group.startswith(tuple("aeiou")) else "a"
    return f'"{word}" is not {article} {group} command'


def _with_help(message: str, path: str) -> str:
    return f"{message}{'' if message.endswith('?') else '.'} See '{path} --help'"


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """A question that follows an error, or nothing if nothing known is like the word."""
    from difflib import get_close_matches

    close = get_close_matches(word, tuple(known), n=1)
    return f". Did you mean '{prefix}{close[0]}'?" if close else ""


# --- help ---


def command_help(path: str, command: Command) -> str:
    return _sections(
        command.summary,
        [f"{path} [options] {command.arguments}".rstrip()],
        ("Options", [(_spelling(flag), flag.help) for flag in (*command.flags, HELP)]),
        examples=command.examples,
        details=command.details,
    )


def group_help(path: str, group: Group) -> str:
    usage = [f"{path} COMMAND"]
    tables = [("Commands", [(name, command.summary) for name, command in group.commands.items()])]
    if group.default is not None:
        usage.insert(
            0, " ".join(filter(None, (path, "[options]" if group.default.flags else "", group.default.arguments)))
        )
        if group.default.flags:
            tables.append(("Options", [(_spelling(flag), flag.help) for flag in (*group.default.flags, HELP)]))
    default = group.default.examples if group.default else ()
    return _sections(
        group.summary,
        usage,
        *tables,
        examples=(*default, *(example for command in group.commands.values() for example in _examples(command)[:1])),
        details=group.default.details if group.default else "",
    )


def _examples(command: Command | Group) -> tuple[str, ...]:
    if isinstance(command, Group):
        return tuple(example for one in command.commands.values() for example in _examples(one))
    return command.examples


def root_help(
    commands: Mapping[str, str],
    flags: tuple[Flag, ...],
    environment: Iterable[tuple[str, str]],
    examples: tuple[str, ...],
    details: str,
) -> str:
    return _sections(
        "A key encryption server and its client.",
        ["kes COMMAND"],
        ("Commands", list(commands.items())),
        ("Options", [(_spelling(flag), flag.help) for flag in flags]),
        ("Environment of clients", list(environment)),
        examples=examples,
        details=details,
    )


def _spelling(flag: Flag) -> str:
    short = f"-{flag.short}, " if flag.short else "    "
    return f"{short}--{flag.name} {flag.value}".rstrip()


def _sections(
    summary: str,
    usage: list[str],
    *tables: tuple[str, list[tuple[str, str]]],
    examples: Iterable[str],
    details: str,
) -> str:
    parts = [summary, "Usage:\n" + "\n".join(f"    {line}" for line in usage)]
    for title, rows in tables:
        width = max(len(left) for left, _ in rows) + 3
        parts.append(f"{title}:\n" + "\n".join(f"    {left:<{width}}{right}" for left, right in rows))
    if lines := [f"    {example}" for example in examples]:
        parts.append("\n".join(("Examples:", *lines)))
    if details:
        parts.append(details.strip("\n"))
    return "\n\n".join(parts) + "\n"
