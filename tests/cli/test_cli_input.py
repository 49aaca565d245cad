"""What commands read from standard input: `-` as an argument."""

import base64
import json
import subprocess
from collections.abc import Iterator

import pytest

from keswick.identity import APIKey, certificate_for
from support.cli import COMMAND, Result, clean_environment, kes, kes_on_terminal
from support.server import RunningServer, start_server

CONTEXT = base64.b64encode(b"context").decode()
USER = APIKey.generate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with start_server(tmp_path_factory.mktemp("server")) as server:
        with server.client() as client:
            client.create_key("k")
        yield server


def run(server: RunningServer, *arguments: str, stdin: bytes = b"") -> Result:
    return kes(*arguments, env=server.environment, stdin=stdin)


@pytest.mark.parametrize("message", [b"hello\n", b"", b"\0\xff\r\n", b"-", bytes(700 << 10)])
def test_a_message_is_taken_byte_for_byte(server: RunningServer, message: bytes) -> None:
    sealed = json.loads(run(server, "key", "encrypt", "k", "-", stdin=message).stdout)["ciphertext"]
    opened = run(server, "key", "decrypt", "k", "-", stdin=f"{sealed}\n".encode())
    assert base64.b64decode(json.loads(opened.stdout)["plaintext"]) == message


def test_a_dash_that_is_the_message_itself(server: RunningServer) -> None:
    """There is no other way to write it: a command line has one meaning for `-`."""
    sealed = json.loads(run(server, "key", "encrypt", "k", "-", stdin=b"-").stdout)["ciphertext"]
    assert json.loads(run(server, "key", "decrypt", "k", sealed).stdout) == {"plaintext": "LQ=="}


def test_contexts(server: RunningServer) -> None:
    made = json.loads(run(server, "key", "dek", "k", "-", stdin=CONTEXT.encode()).stdout)
    for context, stdin in ((CONTEXT, b""), ("-", f" {CONTEXT}\r\n".encode())):
        opened = json.loads(run(server, "key", "decrypt", "k", made["ciphertext"], context, stdin=stdin).stdout)
        assert opened["plaintext"] == made["plaintext"]
    opened = json.loads(run(server, "key", "decrypt", "k", "-", CONTEXT, stdin=made["ciphertext"].encode()).stdout)
    assert opened["plaintext"] == made["plaintext"]


def test_an_api_key_for_a_list(server: RunningServer) -> None:
    environment = {**server.environment, "KES_API_KEY": ""}
    stdin = f"{server.api_key}\n".encode()
    assert kes("ls", "-a", "-", env=environment, stdin=stdin) == (0, "Key\nk\n", "")


def test_identities_of_what_is_piped() -> None:
    pair = certificate_for(USER)
    for stdin in (USER.text, f"\n {USER.text}\n", pair.certificate_pem):
        assert kes("identity", "of", "-", stdin=stdin.encode()) == (0, USER.identity, "")
        assert kes("identity", "-", stdin=stdin.encode()) == (0, USER.identity, "")
    assert kes("identity", "-", stdin=pair.key_pem().encode()) == (0, USER.text, "")


ALL = [
    ("key encrypt k -", "message"),
    ("key decrypt k -", "ciphertext"),
    ("key decrypt k AAAA -", "context"),
    ("key dek k -", "context"),
    ("key import k -", "crypto key"),
    ("ls -a -", "API key"),
    ("identity -", "API key or file"),
    ("identity of -", "API key or certificate"),
    ("tool identity of", "certificate"),
]


@pytest.mark.parametrize(("line", "what"), ALL)
def test_a_terminal_is_nothing_to_read_a_secret_from(line: str, what: str) -> None:
    code, shown = kes_on_terminal(*line.split(), env={"NO_COLOR": "1"})
    assert code == 1
    assert shown.startswith(f"Error: no {what} specified: standard input is a terminal; write the {what} into a pipe")


@pytest.mark.parametrize(("line", "what"), ALL)
def test_nothing_to_read(line: str, what: str) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" <&-', "bash", *COMMAND, *line.split()],
        capture_output=True,
        env=clean_environment(),
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: no {what} specified: standard input is closed. See 'kes ")
    if what != "message":
        result = kes(*line.split(), stdin=b" \n")
        assert (result.code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"Error: no {what} specified. See 'kes ")


@pytest.mark.parametrize(("line", "what"), ALL)
def test_more_than_anybody_needs_is_not_read(line: str, what: str) -> None:
    """The pipe never ends, and nobody waits for its end."""
    with open("/dev/zero", "rb") as endless:
        done = subprocess.run(
            [*COMMAND, *line.split()],
            stdin=endless,
            capture_output=True,
            env=clean_environment(),
            text=True,
            check=False,
        )
    assert (done.returncode, done.stdout) == (1, "")
    most = "700 KiB; 'kes seal' seals files of any size" if what == "message" else "1024 KiB"
    assert done.stderr.startswith(f"Error: the {what} on standard input is longer than {most}. See 'kes ")


def test_two_things_cannot_be_in_one_pipe() -> None:
    error = "only one of ciphertext and context can be on standard input. See 'kes key decrypt --help'"
    assert kes("key", "decrypt", "k", "-", "-") == (1, "", f"Error: {error}\n")


def test_bad_base64_is_not_repeated() -> None:
    result = kes("key", "import", "k", "-", stdin=b"not base64")
    assert result == (1, "", "Error: invalid key: illegal base64 data at input byte 3. See 'kes key import --help'\n")


def test_a_standard_input_that_cannot_be_read() -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" 0>/dev/null', "bash", *COMMAND, "identity", "of", "-"],
        capture_output=True,
        env=clean_environment(),
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "Error: standard input: Bad file descriptor\n")
