"""Completion of command lines: what a shell is told to ask, how that is installed, and what it gets for an answer.

The shell runs this program with the line in COMP_LINE, and perhaps the cursor's place in COMP_POINT (bytes), as bash
does for `complete -C`. The answer is a candidate per line; none stands for the names of files: shells know them better.
"""

import os
import sys
from collections.abc import Iterator
from importlib import import_module

from keswick.cli.command import HELP, Arguments, Command, CommandError, Flag, Group

_DESCRIBED = "--described"
"""What our own scripts add: candidates come with a tab and a description then."""

_BASH = "complete -o default -C {quoted} kes\n"
_ZSH = (
    "(( $+functions[compdef] )) || { autoload -U compinit && compinit }\n"
    "autoload -U +X bashcompinit && bashcompinit\n" + _BASH
)
_ZSH_FUNCTION = r"""#compdef kes
_kes() {
    local -a found
    found=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" {program} --described)}")
    if [[ -z "$found" ]]; then
        _files
    else
        found=("${(@)${(@)found//:/\\:}/$'\t'/:}")
        _describe -t commands command found
    fi
}
if [[ $funcstack[1] == _kes ]]; then  # a file in $fpath, called for the first time
    _kes "$@"
else
    compdef _kes kes
fi
"""
_FISH = """# Completion of kes, as 'kes completion fish' prints it.
function __kes_complete
    set -l found (COMP_LINE=(commandline -cp | string collect) {program} --described)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c kes -f -k -a '(__kes_complete)'
"""


# --- what a shell has to be told ---


def print_bash(arguments: Arguments) -> None:
    arguments.at_most(0)
    print(_filled(_BASH), end="")


def print_zsh(arguments: Arguments) -> None:
    arguments.at_most(0)
    print(_filled(_ZSH_FUNCTION), end="")


def print_fish(arguments: Arguments) -> None:
    arguments.at_most(0)
    print(_filled(_FISH), end="")


def install() -> None:
    """`kes --auto-completion`: for the shell that $SHELL names, in the file that it reads at its start."""
    shell = os.environ.get("SHELL", "")
    home = os.path.expanduser("~")
    match os.path.basename(shell):
        case "bash":
            _append(os.path.join(home, ".bashrc"), _filled(_BASH))
        case "zsh":
            _append(os.path.join(os.environ.get("ZDOTDIR") or home, ".zshrc"), _filled(_ZSH))
        case "fish":
            config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
            _write(os.path.join(config, "fish", "completions", "kes.fish"), _filled(_FISH))
        case _:
            raise CommandError(f"auto-completion for '{shell}' is not available: set SHELL to bash, zsh or fish")


def _append(path: str, lines: str) -> None:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    except FileNotFoundError:
        raise CommandError(f"'{path}' does not exist: create it, and try again") from None
    command = lines.splitlines()[-1]
    if command in text.splitlines():
        print("Completion is already installed.")
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(lines if text.endswith("\n") or not text else "\n" + lines)
    print(f"Added completion to '{path}'; new shells have it. To remove it, delete there:\n\n    {command}")


def _write(path: str, script: str) -> None:
    from pathlib import Path

    from keswick.files import NewFile, write_files

    file = Path(path)
    if file.exists():
        if file.read_text("utf-8", "replace") == script:
            print("Completion is already installed.")
            return
        if not file.read_text("utf-8", "replace").startswith(script.splitlines()[0]):
            raise CommandError(
                f"'{path}' already exists, and is not what this program writes: remove it, and try again"
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_files(NewFile(file, script, secret=False), overwrite=True)
    print(f"Added completion to '{path}'. To remove it, delete that file.")


def _filled(script: str) -> str:
    from shlex import quote

    own = os.path.abspath(sys.argv[0])
    program = f"{quote(sys.executable)} -m keswick" if own.endswith(".py") else quote(own)
    return script.replace("{program}", program).replace("{quoted}", quote(program))


# --- what it gets for an answer ---


def answer(words: list[str]) -> None:
    """Print candidates. `words`: what bash adds to the command, the second is what it replaces; or `_DESCRIBED`."""
    line = os.fsencode(os.environ["COMP_LINE"])
    point = os.environ.get("COMP_POINT", "")
    typed = _split(os.fsdecode(line[: int(point)] if point.isdecimal() else line))
    if len(typed) < 2:
        return
    *before, current = typed[1:]
    # Shells that take `=` for the end of a word want no more than what follows it.
    known = 0
    if len(words) > 1 and words != [_DESCRIBED] and "=" in current:
        known = len(current) - len(words[1].lstrip("=")) if current.endswith(words[1]) else 0
    for candidate, help_ in _candidates(before, current):
        print(f"{candidate}\t{help_}" if help_ and words == [_DESCRIBED] else candidate[known:])


def _candidates(before: list[str], current: str) -> Iterator[tuple[str, str]]:
    """The words that could stand in the place of `current`, with their help."""
    from keswick.cli import COMMANDS, FLAGS

    command: Command | Group | None = None
    flags: tuple[Flag, ...] = FLAGS
    commands = dict(COMMANDS)
    pending: Flag | None = None
    for word in before:
        if pending is not None:
            pending = None
        elif word == "--":
            return
        elif word.startswith("-") and word != "-":
            pending = _waiting(word, flags)
        elif word in commands:
            if command is None:
                command = import_module(f"keswick.cli.{word}").COMMAND
            elif isinstance(command, Group):
                command = command.commands[command.spellings.get(word, word)]
            flags, commands = _offered(command)
        elif command is None:
            return
        else:
            commands = {}  # this was an argument, or no command at all
    if pending is not None:
        yield from ((value, "") for value in pending.choices if value.startswith(current))
    elif current.startswith("-"):
        name, equals, value = current.lstrip("-").partition("=")
        if equals:
            found = next((flag for flag in flags if flag.name == name), None)
            yield from ((f"--{name}={one}", "") for one in (found.choices if found else ()) if one.startswith(value))
        else:
            yield from ((f"--{flag.name}", flag.help) for flag in flags if flag.name.startswith(name))
    else:
        yield from ((name, summary) for name, summary in commands.items() if name.startswith(current) and summary)


def _offered(command: Command | Group) -> tuple[tuple[Flag, ...], dict[str, str]]:
    """Its flags; and its commands with their help, those of other generations without."""
    if isinstance(command, Command):
        return (*command.flags, HELP), {}
    summaries = {name: one.summary for name, one in command.commands.items()}
    own = command.default.flags if command.default is not None else ()
    return (*own, HELP), {**dict.fromkeys(command.spellings, ""), **summaries}


def _waiting(word: str, flags: tuple[Flag, ...]) -> Flag | None:
    """The flag that takes the next word for its value."""
    name = word.lstrip("-")
    for flag in flags:
        if flag.value and (
            flag.name == name or (not word.startswith("--") and flag.short and name.endswith(flag.short))
        ):
            return flag
    return None


def _split(line: str) -> list[str]:
    """The words of an unfinished line, without quotes; the last one ends at the cursor and may be empty."""
    import shlex

    end = "\0"
    for close in ("", "'", '"'):
        try:
            words = shlex.split(f"{line}{end}{close}")
        except ValueError:
            continue
        words[-1] = words[-1].rstrip(end)
        while words and "=" in words[0]:  # variables before the command
            del words[0]
        return words
    return []


COMMAND = Group(
    "Print the completion of commands for a shell; 'kes --auto-completion' installs it.",
    {
        "bash": Command(
            "",
            "Print what bash has to be told.",
            print_bash,
            examples=("kes completion bash >>~/.bashrc", "source <(kes completion bash)"),
        ),
        "zsh": Command(
            "",
            "Print what zsh has to be told, after compinit.",
            print_zsh,
            examples=("source <(kes completion zsh)", 'kes completion zsh >"${fpath[1]}/_kes"'),
        ),
        "fish": Command(
            "",
            "Print what fish has to be told.",
            print_fish,
            examples=("kes completion fish >~/.config/fish/completions/kes.fish", "kes completion fish | source"),
        ),
    },
)
