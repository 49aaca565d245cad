import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli import COMMAND, clean_environment, kes, kes_on_terminal
from support.server import RunningServer, start_server

CONTENT = os.urandom(300_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server"), keys=[{"name": "my-key"}]) as server:
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "backup").write_bytes(CONTENT)
    return tmp_path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def piped(server: RunningServer, *arguments: str, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, env=clean_environment(server.environment), check=False
    )


def test_a_file_there_and_back(server: RunningServer, folder: Path) -> None:
    assert kes("seal", "backup", "--key", "my-key", env=server.environment) == (0, "", "")
    (folder / "backup").unlink()
    assert kes("unseal", "backup.sealed", env=server.environment) == (0, "", "")
    assert (folder / "backup").read_bytes() == CONTENT
    assert names(folder) == {"backup", "backup.sealed"}


def test_other_names_and_a_context(server: RunningServer, folder: Path) -> None:
    bound = ("--context", "bW9uZGF5", "-o")
    assert kes("seal", "backup", "--key=my-key", *bound, "sealed", env=server.environment).code == 0
    assert kes("unseal", "sealed", *bound, "back", env=server.environment).code == 0
    assert (folder / "back").read_bytes() == CONTENT
    refused = kes("unseal", "sealed", "-o", "again", env=server.environment)
    assert refused.code == 1
    assert refused.stderr.startswith('Error: failed to unseal "sealed": the server does not open the data key')
    assert not (folder / "again").exists()


def test_pipes(server: RunningServer) -> None:
    sealed = piped(server, "seal", "-", "--key", "my-key", stdin=CONTENT)
    assert (sealed.returncode, sealed.stderr) == (0, b"")
    back = piped(server, "unseal", "-", stdin=sealed.stdout)
    assert (back.returncode, back.stdout, back.stderr) == (0, CONTENT, b"")


def test_between_pipes_and_files(server: RunningServer, folder: Path) -> None:
    assert piped(server, "seal", "-", "--key", "my-key", "-o", "sealed", stdin=CONTENT).returncode == 0
    assert piped(server, "unseal", "sealed", "-o", "-").stdout == CONTENT
    sealed = piped(server, "seal", "backup", "--key", "my-key", "-o", "-").stdout
    assert piped(server, "unseal", "-", "-o", "back", stdin=sealed).returncode == 0
    assert (folder / "back").read_bytes() == CONTENT
    assert (folder / "back").stat().st_mode & 0o777 == 0o600


def test_what_was_cut_off_is_an_error_even_in_a_pipe(server: RunningServer, folder: Path) -> None:
    sealed = piped(server, "seal", "backup", "--key", "my-key", "-o", "-").stdout
    cut = piped(server, "unseal", "-", stdin=sealed[:-50_000])
    assert cut.returncode == 1
    assert CONTENT.startswith(cut.stdout)
    assert b"cut off: do not use what came before it" in cut.stderr
    assert cut.stderr.startswith(b"Error: failed to unseal standard input: ")
    (folder / "cut.sealed").write_bytes(sealed[:-50_000])
    assert kes("unseal", "cut.sealed", env=server.environment).code == 1
    assert names(folder) == {"backup", "cut.sealed"}


def test_a_reader_that_goes_away(server: RunningServer, folder: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "seal", "/dev/zero", "--key", "my-key", "-o", "-"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(server.environment),
    )
    assert process.stdout is not None
    assert len(process.stdout.read(1 << 20)) == 1 << 20
    process.stdout.close()
    assert process.stderr is not None
    assert (process.wait(30), process.stderr.read()) == (1, b"")
    process.stderr.close()


def test_nothing_is_overwritten_unless_that_is_wanted(server: RunningServer, folder: Path) -> None:
    (folder / "backup.sealed").write_text("mine")
    refused = kes("seal", "backup", "--key", "my-key", env=server.environment)
    assert refused == (1, "", "Error: 'backup.sealed' already exists. Use --force to overwrite it\n")
    assert (folder / "backup.sealed").read_text() == "mine"
    assert kes("seal", "backup", "--key", "my-key", "-f", env=server.environment).code == 0
    refused = kes("unseal", "backup.sealed", env=server.environment)
    assert refused == (1, "", "Error: 'backup' already exists. Use --force to overwrite it\n")
    assert kes("unseal", "backup.sealed", "--force", env=server.environment).code == 0
    refused = kes("seal", "-", "--key", "my-key", "-o", "backup", env=server.environment)
    assert refused == (1, "", "Error: 'backup' already exists. Use --force to overwrite it\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("seal",), "no file specified. See 'kes seal --help'"),
        (("seal", "backup"), "no key name specified: name a key of the server with '--key'. See 'kes seal --help'"),
        (("seal", "backup", "b", "--key", "my-key"), "too many arguments. See 'kes seal --help'"),
        (("seal", "absent", "--key", "my-key"), "absent: No such file or directory"),
        (("seal", "backup", "--key", "my-key", "-o", "no/sealed"), "no/sealed: No such file or directory"),
        (("seal", ".", "--key", "my-key", "-o", "sealed"), ".: Is a directory"),
        (("seal", ".", "--key", "my-key"), ".: Is a directory"),
        (
            ("seal", "backup", "--key", "absent"),
            'failed to seal "backup": key does not exist',
        ),
        (("unseal",), "no file specified. See 'kes unseal --help'"),
        (("unseal", "backup", "--context", "?"), "invalid context: it must be base64. See 'kes unseal --help'"),
        (
            ("unseal", "backup"),
            "failed to unseal \"backup\": the name of 'backup' does not end in '.sealed': name a file for",
        ),
        (
            ("unseal", "backup", "-o", "back"),
            'failed to unseal "backup": this is not a sealed file: it does not begin as one; perhaps it was never '
            "sealed, or was transferred as text",
        ),
    ],
)
def test_errors(server: RunningServer, folder: Path, arguments: tuple[str, ...], error: str) -> None:
    refused = kes(*arguments, env=server.environment)
    assert (refused.code, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"Error: {error}")
    assert refused.stderr.count("\n") == 1
    assert names(folder) == {"backup"}


def test_a_terminal_gets_no_sealed_file(server: RunningServer) -> None:
    code, shown = kes_on_terminal("seal", "backup", "--key", "my-key", "-o", "-", env=server.environment)
    assert code == 1
    assert "a sealed file is nothing for a terminal" in shown


@pytest.mark.parametrize("arguments", [("seal", "-", "--key", "my-key", "-o", "sealed"), ("unseal", "-")])
def test_nobody_types_a_file(server: RunningServer, folder: Path, arguments: tuple[str, ...]) -> None:
    code, shown = kes_on_terminal(*arguments, env=server.environment)
    assert code == 1
    assert "standard input is a terminal" in shown
    assert names(folder) == {"backup"}


def test_a_terminal_gets_what_was_sealed(server: RunningServer, folder: Path) -> None:
    (folder / "note").write_text("attack at dawn\n")
    assert kes("seal", "note", "--key", "my-key", env=server.environment).code == 0
    assert kes_on_terminal("unseal", "note.sealed", "-o", "-", env=server.environment) == (0, "attack at dawn\n")
