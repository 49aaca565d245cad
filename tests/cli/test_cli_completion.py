"""Completion: what a shell is offered, in a real bash too, and how it is installed."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from keswick.cli import COMMANDS
from support.cli import Result, Terminal, clean_environment, kes


def offered(line: str, *words: str, point: int | None = None) -> list[str]:
    place = {} if point is None else {"COMP_POINT": str(point)}
    result = kes(*words, env={"COMP_LINE": line, **place})
    assert (result.code, result.stderr) == (0, "")
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "candidates"),
    [
        ("kes ", [*COMMANDS]),
        ("kes k", ["key"]),
        ("/usr/bin/kes po", ["policy"]),
        ("KES_SERVER=x kes po", ["policy"]),
        ("kes key ", ["create", "import", "info", "ls", "list", "rm", "encrypt", "decrypt", "dek"]),
        ("kes key l", ["ls", "list"]),
        ("kes tool identity n", ["new"]),
        ("kes --", ["--version", "--update", "--auto-completion", "--help"]),
        ("kes server --c", ["--config", "--cert", "--check"]),
        ("kes server --config x --a", ["--addr", "--auth"]),
        ("kes server -a", ["--addr", "--auth"]),
        ("kes key delete --i", ["--insecure"]),
        ("kes key ls --color ", ["always", "auto", "never"]),
        ("kes key ls --color a", ["always", "auto"]),
        ("kes key ls --color=n", ["--color=never"]),
        ("kes key import --cipher C", ["ChaCha20"]),
        ("kes log trace --type ", ["audit", "error", "metric"]),
        ("kes server --auth o", ["on", "off"]),
        ("kes identity -", ["--help"]),
        ("kes completion ", ["bash", "zsh", "fish"]),
        ("kes 'key' \"c", ["create"]),
        # What only the shell knows: files; and what nobody knows.
        ("kes identity of ", []),
        ("kes server --config ", []),
        ("kes server --config=", []),
        ("kes key create a ", []),
        ("kes key ls -- --", []),
        ("kes nix ", []),
        ("kes key nix ", []),
        ("kes key ls --nix=", []),
        ("kes", []),
        ("", []),
        ("kes 'a \" \\", []),
    ],
)
def test_what_is_offered(line: str, candidates: list[str]) -> None:
    assert offered(line) == candidates


def test_only_what_stands_before_the_cursor_counts() -> None:
    assert offered("kes po --json", point=6) == ["policy"]
    assert offered("kes key create é po", point=len("kes key cr")) == ["create"]


def test_bash_gets_what_follows_the_equals_sign() -> None:
    """It takes that sign for the end of a word; what it replaces is its second argument."""
    assert offered("kes key ls --color=al", "kes", "al", "=") == ["always"]
    assert offered("kes key ls --color=", "kes", "=", "--color") == ["always", "auto", "never"]
    assert offered("kes key ls --color=", "kes", "", "=") == ["always", "auto", "never"]
    assert offered("kes key ls --color=al", "kes", "--color=al", "ls") == ["--color=always"]


def test_other_shells_get_descriptions() -> None:
    assert offered("kes pol", "--described") == [
        "policy\tLook at the server's policies, and change them while it runs."
    ]
    assert offered("kes key ls --color=n", "--described") == ["--color=never"]


def test_only_the_module_of_the_command_is_imported() -> None:
    code = (
        "import sys; from keswick.cli import main; main(['kes', 'c', 'key']);"
        "print(sorted(name for name in sys.modules if name.startswith('keswick.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        env=clean_environment({"COMP_LINE": "kes key c"}),
        text=True,
        check=True,
    )
    imported = done.stdout.splitlines()[-1]
    assert "keswick.cli.key" in imported
    assert not {"keswick.cli.identity", "keswick.client", "keswick.config"} & set(imported.split("'"))


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """`kes` as an installed command has it, in a folder whose name a shell has to quote."""
    path = tmp_path / "it's here" / "kes"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom keswick.__main__ import main\nsys.exit(main())\n")
    path.chmod(0o755)
    return path


def test_in_a_real_bash(program: Path, tmp_path: Path) -> None:
    (tmp_path / "certificate.pem").touch()
    environment = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PS1": "$ ",
        "INPUTRC": os.devnull,
        "HOME": str(tmp_path),
    }
    bash = ["bash", "--noprofile", "--norc", "-i"]
    with Terminal(command=bash, env=environment, size=(200, 50)) as terminal:
        terminal.wait_for("$")
        terminal.press(b"source <(kes completion bash); cd ~; echo ready-$((40+2))\r")
        terminal.wait_for("ready-42")
        for typed, completed in (
            ("kes pol\t", "kes policy"),
            ("kes key cre\t", "kes key create"),
            ("kes key ls --color=al\t", "kes key ls --color=always"),
            ("kes key ls --col\t", "kes key ls --color"),
            ("kes identity of ./cert\t", "kes identity of ./certificate.pem"),
            ("kes server --config ./cert\t", "kes server --config ./certificate.pem"),
        ):
            terminal.press(typed.encode())
            terminal.wait_for(completed)
            terminal.press(b"\x15")  # take the line back
        terminal.press(b"kes key \t\t")
        terminal.wait_for("decrypt")
        terminal.wait_for("import")


def installed(program: Path, shell: str, home: Path) -> Result:
    done = subprocess.run(
        [str(program), "--auto-completion"],
        capture_output=True,
        env=clean_environment({"SHELL": shell, "HOME": str(home), "ZDOTDIR": "", "XDG_CONFIG_HOME": ""}),
        text=True,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(("shell", "rc"), [("/bin/bash", ".bashrc"), ("/usr/bin/zsh", ".zshrc")])
def test_installed_once_for_bash_and_zsh(program: Path, tmp_path: Path, shell: str, rc: str) -> None:
    file = tmp_path / rc
    missing = installed(program, shell, tmp_path)
    assert missing == (1, "", f"Error: '{file}' does not exist: create it, and try again\n")
    file.write_text("alias ll='ls -l'")  # and no newline
    file.chmod(0o600)
    result = installed(program, shell, tmp_path)
    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith(
        f"Added completion to '{file}'; new shells have it. To remove it, delete there:\n\n"
    )
    text = file.read_text()
    assert text.startswith("alias ll='ls -l'\n")
    assert text.splitlines()[-1] == result.stdout.splitlines()[-1].strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert installed(program, shell, tmp_path) == (0, "Completion is already installed.\n", "")
    assert file.read_text() == text
    done = subprocess.run(["bash", "-n", str(file)], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"") or rc == ".zshrc"


def test_what_was_installed_works_in_a_new_bash(program: Path, tmp_path: Path) -> None:
    rc = tmp_path / ".bashrc"
    rc.write_text("PS1='$ '\n")
    assert installed(program, "/bin/bash", tmp_path).code == 0
    environment = {"HOME": str(tmp_path), "INPUTRC": os.devnull}
    with Terminal(command=["bash", "--rcfile", str(rc), "-i"], env=environment, size=(200, 50)) as terminal:
        terminal.wait_for("$")
        terminal.press(b"kes key cre\t")
        terminal.wait_for("kes key create")


def test_installed_once_for_fish(program: Path, tmp_path: Path) -> None:
    file = tmp_path / ".config" / "fish" / "completions" / "kes.fish"
    assert installed(program, "/usr/bin/fish", tmp_path).stdout.startswith(f"Added completion to '{file}'.")
    script = file.read_text()
    assert "complete -c kes" in script
    assert installed(program, "/usr/bin/fish", tmp_path) == (0, "Completion is already installed.\n", "")
    file.write_text(script + "# of an older version\n")
    assert installed(program, "/usr/bin/fish", tmp_path).code == 0
    assert file.read_text() == script
    file.write_text("complete -c kes -a mine\n")
    refused = installed(program, "/usr/bin/fish", tmp_path)
    assert refused.code == 1
    assert "is not what this program writes" in refused.stderr
    assert file.read_text() == "complete -c kes -a mine\n"


@pytest.mark.parametrize("shell", ["/bin/tcsh", ""])
def test_other_shells_are_told(tmp_path: Path, program: Path, shell: str) -> None:
    error = f"Error: auto-completion for '{shell}' is not available: set SHELL to bash, zsh or fish\n"
    assert installed(program, shell, tmp_path) == (1, "", error)


def test_called_as_a_module_it_is_called_so_again() -> None:
    assert kes("completion", "bash").stdout == f"complete -o default -C '{sys.executable} -m keswick' kes\n"
    assert f"{sys.executable} -m keswick --described" in kes("completion", "zsh").stdout
    assert f"{sys.executable} -m keswick --described" in kes("completion", "fish").stdout
