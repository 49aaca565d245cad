"""Arguments, help and errors of the command line, whatever the command."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from keswick.cli import COMMANDS
from keswick.cli.command import Arguments, Command, CommandError, Flag, Group, HelpWanted, parse, run
from keswick.cli.connection import ENVIRONMENT
from keswick.client.environment import API_KEY, CA_FILE, CERT_FILE, KEY_FILE, SERVER
from support.cli import COMMAND, clean_environment, kes, kes_on_terminal
from support.commands import every_command

FLAGS = (Flag("json", "…"), Flag("insecure", "…", short="k"), Flag("key", "…", short="f", value="FILE"))


@pytest.mark.parametrize(
    ("words", "flags", "rest"),
    [
        ("a --json b -k", {"json": [], "insecure": []}, ["a", "b"]),
        ("--key=x a --key y", {"key": ["x", "y"]}, ["a"]),
        ("-key x -json", {"key": ["x"], "json": []}, []),
        ("-kfx", {"insecure": [], "key": ["x"]}, []),
        ("-f=x -f y", {"key": ["x", "y"]}, []),
        ("-f -k", {"key": ["-k"]}, []),
        ("-k -- --json -", {"insecure": []}, ["--json", "-"]),
        ("- a", {}, ["-", "a"]),
        ("--json=false --insecure=true", {"insecure": []}, []),
    ],
)
def test_flags_stand_anywhere(words: str, flags: dict[str, list[str]], rest: list[str]) -> None:
    arguments = parse(words.split(), "kes x", FLAGS)
    assert arguments.flags == flags
    assert arguments.words == rest


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--bogus", "unknown flag: --bogus. See 'kes x --help'"),
        ("--bogus=1", "unknown flag: --bogus. See 'kes x --help'"),
        ("--jso", "unknown flag: --jso. Did you mean '--json'? See 'kes x --help'"),
        ("-x", "unknown shorthand flag: 'x' in -x. See 'kes x --help'"),
        ("-kx", "unknown shorthand flag: 'x' in -kx. See 'kes x --help'"),
        ("--key", "flag needs an argument: --key. See 'kes x --help'"),
        ("-f", "flag needs an argument: -f. See 'kes x --help'"),
        ("--json=x", 'invalid argument "x" for "--json" flag: it takes no value. See \'kes x --help\''),
    ],
)
def test_wrong_flags_are_named(words: str, error: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse(words.split(), "kes x", FLAGS)
    assert str(caught.value) == error


def test_values_are_repeated_or_separated_by_commas() -> None:
    assert parse(["--key", "a,b", "--key", "c"], "kes x", FLAGS).values("key") == ["a", "b", "c"]


def test_a_group_without_a_command_shows_its_help() -> None:
    ran: list[str] = []
    group = Group("…", {"rm": Command("NAME", "…", lambda a: ran.append(a.path))}, spellings={"delete": "rm"})
    run("key", group, ["delete", "x"])
    assert ran == ["kes key delete"]
    for words in ([], ["-h"], ["--help"]):
        with pytest.raises(HelpWanted, match="Usage:"):
            run("key", group, words)
    with pytest.raises(CommandError, match="unknown flag: --bogus"):
        run("key", group, ["--bogus"])


def test_groups_stand_in_groups() -> None:
    ran: list[str] = []
    inner = Group("…", {"new": Command("", "…", lambda a: ran.append(a.path))})
    group = Group("…", {"identity": inner})
    run("tool", group, ["identity", "new"])
    assert ran == ["kes tool identity new"]
    for words, error in (
        (["idenity"], "\"idenity\" is not a tool command. Did you mean 'identity'? See 'kes tool --help'"),
        (
            ["identity", "nwe"],
            "\"nwe\" is not a tool identity command. Did you mean 'new'? See 'kes tool identity --help'",
        ),
    ):
        with pytest.raises(CommandError) as caught:
            run("tool", group, words)
        assert str(caught.value) == error


def test_words_that_are_missing_or_too_many() -> None:
    arguments = Arguments("kes key rm")
    arguments.words = ["a", ""]
    assert arguments.word(0, "key name") == "a"
    for index in (1, 2):
        with pytest.raises(CommandError, match=r"no message specified\. See 'kes key rm --help'"):
            arguments.word(index, "message")
    with pytest.raises(CommandError, match=r"too many arguments\. See 'kes key rm --help'"):
        arguments.at_most(1)


def test_help_shows_examples_on_every_level() -> None:
    group = Group(
        "…",
        {"a": Command("", "…", lambda _: None, examples=("kes x a 1", "kes x a 2")), "b": Command("", "…", print)},
        default=Command("", "…", lambda _: None, examples=("kes x",)),
    )
    for words, shown in ((["--help"], ("kes x", "kes x a 1")), (["a", "-h"], ("kes x a 1", "kes x a 2"))):
        with pytest.raises(HelpWanted) as caught:
            run("x", group, words)
        assert "\n\nExamples:\n" + "".join(f"    {line}\n" for line in shown) in str(caught.value)
    assert "\n\nExamples:\n    kes init" in kes().stderr


def test_every_command_has_an_example_that_calls_it() -> None:
    for path, command in every_command():
        assert command.examples, path
        assert all(path in example for example in command.examples)


@pytest.mark.parametrize(
    "arguments", [(), ("-h",), ("--help",), ("key",), ("key", "create", "-h"), ("ls", "--help"), ("init", "x", "-help")]
)
def test_help_goes_to_stderr_and_exits_2(arguments: tuple[str, ...]) -> None:
    result = kes(*arguments)
    assert result.code == 2
    assert result.stdout == ""
    assert "Usage:\n    kes " in result.stderr


def test_every_command_is_in_the_help_of_its_group() -> None:
    listed = [
        line.split()[0] for line in kes().stderr.partition("Commands:")[2].partition("Options:")[0].splitlines() if line
    ]
    assert listed == list(COMMANDS)


def test_the_documentation_names_every_command_flag_and_variable() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text, listed = (docs / "cli.md").read_text(), (docs / "commands.md").read_text()
    for path, command in every_command():
        start = " ".join(path.split()[:2])
        section = next(part for part in text.split("\n## ") if f"`{start}" in part.splitlines()[0])
        assert re.search(rf"(?<![\w-]){path.split()[-1]}(?![\w-])", section), path
        entry = re.split(rf"^##+ `{path}`$", listed, flags=re.MULTILINE)[1].partition("\n#")[0]
        assert [flag.name for flag in command.flags if f"`--{flag.name}" not in entry] == []
    for variable in (*SERVER, *API_KEY, *KEY_FILE, *CERT_FILE, *CA_FILE):
        assert f"`{variable}`" in text


def test_the_help_names_the_variables_of_clients() -> None:
    assert {name for name, _ in ENVIRONMENT} - {"SSL_CERT_FILE"} <= {
        *SERVER,
        *API_KEY,
        *KEY_FILE,
        *CERT_FILE,
        *CA_FILE,
    }
    assert "KES_CLIENT_CERT" in kes("--help").stderr


@pytest.mark.parametrize("flag", ["-v", "--version"])
def test_version(flag: str) -> None:
    result = kes(flag)
    assert result.code == 0
    assert result.stdout.splitlines()[0].split() == ["Version", "0.1.0", "commit=<unknown>"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("foo",), "\"foo\" is not a kes command. See 'kes --help'"),
        (("kye",), "\"kye\" is not a kes command. Did you mean 'key'? See 'kes --help'"),
        (("key", "foo"), "\"foo\" is not a key command. See 'kes key --help'"),
        (("--bogus",), "unknown flag: --bogus. See 'kes --help'"),
        (("key", "create", "--bogus"), "unknown flag: --bogus. See 'kes key create --help'"),
        (("server", "x"), "too many arguments. See 'kes server --help'"),
        (("--version", "extra"), "too many arguments. See 'kes --help'"),
        (("a\nb\x1b]0;c\x07é\udcff",), "\"a\\nb\\x1b]0;c\\x07é\\udcff\" is not a kes command. See 'kes --help'"),
    ],
)
def test_an_error_is_one_line_on_stderr(arguments: tuple[str, ...], error: str) -> None:
    assert kes(*arguments) == (1, "", f"Error: {error}\n")


def test_a_long_word_does_not_bury_the_error() -> None:
    code, _, shown = kes("x" * 100_000)
    assert code == 1
    assert len(shown) < 5_000
    assert shown.startswith('Error: "xxx')
    assert shown.endswith("xxx\" is not a kes command. See 'kes --help'\n")


@pytest.mark.parametrize("arguments", [("foo",), ("--help",)])
def test_without_standard_error_nothing_goes_to_standard_output(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$0" -m keswick "$@" 2>&-', COMMAND[0], *arguments],
        stdout=subprocess.PIPE,
        env=clean_environment(),
        check=False,
    )
    assert done.stdout == b""
    assert done.returncode in (1, 2)


@pytest.mark.parametrize("module", ["signal", "keswick.cli", "keswick.cli.command", "keswick.about"])
def test_an_interrupt_is_quiet_from_the_first_import_on(module: str) -> None:
    """The interrupt comes just when that module is imported."""
    code = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), 2)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from keswick.__main__ import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], capture_output=True, env=clean_environment(), check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")


def test_the_error_is_coloured_only_on_a_terminal_that_can() -> None:
    assert kes_on_terminal("foo")[1].startswith('\x1b[31mError: \x1b[0m"foo" is not')
    assert kes_on_terminal("foo", env={"TERM": "dumb"})[1].startswith('Error: "foo" is not')
    assert kes_on_terminal("foo", env={"NO_COLOR": "1"})[1].startswith('Error: "foo" is not')


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("--help",),
        ("foo",),
        *((name, "--help") for name in COMMANDS),
    ],
)
def test_what_needs_no_server_imports_nothing_large(arguments: tuple[str, ...]) -> None:
    code = (
        "import sys; from keswick.cli import main; main(sys.argv[1:]);"
        "heavy = {'ssl', 'msgspec', 'cryptography', 'asyncio', 'yaml'} & set(sys.modules); print(sorted(heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, env=clean_environment(), text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
