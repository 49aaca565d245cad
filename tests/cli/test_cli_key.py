"""`kes key` and `kes ls` against a real server."""

import base64
import itertools
import json
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from keswick.identity import APIKey
from support.cli import COMMAND, Result, Terminal, clean_environment, kes, kes_on_terminal
from support.fake_server import Answer, fake_server
from support.server import RunningServer, start_server

SECRET = base64.b64encode(bytes(range(32))).decode()
URL_SAFE = base64.urlsafe_b64encode(b"\xff" * 32).decode()
USER = APIKey.generate()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    policy = {"app": {"allow": ["/v1/key/list/*"], "identities": [USER.identity]}}
    with start_server(tmp_path_factory.mktemp("server"), policy=policy) as server:
        yield server


@pytest.fixture
def key(server: RunningServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a new key."""
    name = "k-" + re.sub(r"[^0-9A-Za-z]", "-", request.node.name)[-70:].strip("-")
    with server.client() as client:
        client.create_key(name)
        yield name
        if name in client.list_keys(name):
            client.delete_key(name)


def run(server: RunningServer, *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Result:
    return kes(*arguments, env={**server.environment, **(env or {})}, stdin=stdin)


def test_keys_are_created_and_deleted_in_silence(server: RunningServer) -> None:
    assert run(server, "key", "create", "made-1", "made-2") == (0, "", "")
    assert run(server, "key", "ls", "made") == (0, "Key\nmade-1\nmade-2\n", "")
    assert run(server, "key", "rm", "made-1") == (0, "", "")
    assert run(server, "key", "delete", "made-2", "-k") == (0, "", "")
    assert run(server, "key", "ls", "made") == (0, "", "")


def test_many_keys_stop_at_the_first_that_fails(server: RunningServer, key: str) -> None:
    result = run(server, "key", "create", "before", key, "after")
    assert result == (1, "", f'Error: failed to create key "{key}": key already exists\n')
    assert run(server, "key", "rm", "before", "after").stderr == (
        'Error: failed to delete key "after": key does not exist\n'
    )


def test_lists(server: RunningServer, key: str) -> None:
    for arguments in (["key", "ls"], ["ls"]):
        assert run(server, *arguments, key) == (0, f"Key\n{key}\n", "")
        assert run(server, *arguments, "--json", key[:-1] + "*") == (0, f'["{key}"]\n', "")
        assert run(server, *arguments, "none", "--json") == (0, "null\n", "")
    assert run(server, "key", "list", key) == (0, f'{{"name":"{key}"}}\n', "")
    assert run(server, "ls", "--policy") == (0, "Policy\napp\n", "")
    both = run(server, "ls", "--policy", "--identity")
    assert both == (1, "", "Error: cannot list policies and identities at the same time\n")
    identities = json.loads(run(server, "ls", "-i", "--json").stdout)
    assert identities == sorted([USER.identity, APIKey.parse(server.api_key).identity])


def test_a_list_with_its_own_server_and_key(server: RunningServer, key: str) -> None:
    environment = {"KES_SERVER": "https://127.0.0.1:1", "KES_API_KEY": "", "KES_CA_FILE": str(server.ca_file)}
    assert kes("ls", "-s", server.endpoint, "-a", USER.text, key, env=environment) == (0, f"Key\n{key}\n", "")


def test_a_list_on_a_terminal_and_its_colours(server: RunningServer, key: str) -> None:
    code, shown = kes_on_terminal("key", "ls", key, env=server.environment)
    assert (code, shown) == (0, f"\x1b[4mKey\x1b[0m\n{key}\n")
    code, shown = kes_on_terminal("key", "ls", key, "--color", "never", env=server.environment)
    assert (code, shown) == (0, f"Key\n{key}\n")
    assert run(server, "key", "ls", key, "--color=always").stdout == f"\x1b[4mKey\x1b[0m\n{key}\n"
    assert run(server, "key", "ls", "--color", "bogus").stderr == (
        'Error: invalid argument "bogus" for "--color" flag: invalid color option. See \'kes key ls --help\'\n'
    )
    assert kes_on_terminal("key", "list", key, env=server.environment) == (0, f"{key}\n")


def test_info(server: RunningServer, key: str) -> None:
    admin = APIKey.parse(server.api_key).identity
    result = run(server, "key", "info", key)
    assert result.code == 0
    assert re.fullmatch(
        rf"Name        {key}\nAlgorithm   AES256\nDate        \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\nOwner       {admin}",
        result.stdout,
    )
    line = run(server, "key", "info", "--json", key).stdout
    assert re.fullmatch(
        rf'{{"name":"{key}","algorithm":"AES256","created_at":"[^"]*Z","created_by":"{admin}"}}\n', line
    )


def test_data_keys_open_again(server: RunningServer, key: str) -> None:
    for command in ("dek", "derive"):
        result = run(server, "key", command, key, "Y29udGV4dA==")
        assert re.fullmatch(r'\{"plaintext":"[^"]{44}","ciphertext":"[^"]+"\}', result.stdout)
        made = json.loads(result.stdout)
        opened = run(server, "key", "decrypt", key, made["ciphertext"], "Y29udGV4dA==")
        assert opened == (0, f'{{"plaintext":"{made["plaintext"]}"}}', "")
        assert run(server, "key", "decrypt", key, made["ciphertext"]) == (
            1,
            "",
            "Error: failed to decrypt ciphertext: decryption failed: ciphertext is not authentic\n",
        )


def test_messages_are_sealed_byte_for_byte(server: RunningServer, key: str) -> None:
    for message in (b"hello", b"", b"\xff\xfe not UTF-8", "é".encode()):
        result = kes("key", "encrypt", key, message, env=server.environment)
        assert result.code == 0, result.stderr
        sealed = json.loads(result.stdout)["ciphertext"]
        opened = run(server, "key", "decrypt", key, sealed)
        assert base64.b64decode(json.loads(opened.stdout)["plaintext"]) == message


def test_a_person_sees_labels(server: RunningServer, key: str) -> None:
    code, shown = kes_on_terminal("key", "dek", key, env=server.environment)
    assert code == 0
    assert re.fullmatch(r"\nplaintext:  \S{44}\nciphertext: \S+\n", shown)
    sealed = shown.split()[-1]
    _, opened = kes_on_terminal("key", "decrypt", key, sealed, env=server.environment)
    assert opened == f"\nplaintext: {shown.split()[1]}\n"
    assert kes_on_terminal("key", "encrypt", key, "x", env=server.environment)[1].startswith("\nciphertext: ")


@pytest.mark.parametrize(
    ("arguments", "stdin"), [([SECRET], b""), (["-"], SECRET.encode() + b"\n"), ([], SECRET.encode())]
)
def test_import_from_an_argument_or_from_standard_input(
    server: RunningServer, arguments: list[str], stdin: bytes
) -> None:
    assert run(server, "key", "import", "imported", *arguments, stdin=stdin) == (0, "", "")
    assert run(server, "key", "rm", "imported").code == 0


def test_import_for_another_cipher(server: RunningServer) -> None:
    assert run(server, "key", "import", "chacha", SECRET, "--cipher", "ChaCha20") == (0, "", "")
    assert json.loads(run(server, "key", "info", "chacha", "--json").stdout)["algorithm"] == "ChaCha20"
    assert run(server, "key", "rm", "chacha").code == 0
    assert run(server, "key", "import", "x", SECRET, "--cipher", "DES") == (
        1,
        "",
        'Error: invalid argument "DES" for "--cipher" flag: it is one of AES256, AES256-GCM_SHA256, ChaCha20, '
        "XCHACHA20-POLY1305. See 'kes key import --help'\n",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "old", SECRET),  # which imported the key until 2021
        ("create", "-k", "old", SECRET),
        ("create", "old", SECRET, "-k"),
        ("create", "--", "old", SECRET),
        ("create", SECRET),
        ("create", "one", "two", SECRET),
        ("create", "old", f" {SECRET}\n"),
        ("create", "old", URL_SAFE),
        ("import", SECRET, "name"),
    ],
)
def test_a_secret_is_never_taken_for_a_name(server: RunningServer, arguments: tuple[str, ...]) -> None:
    piped, (code, shown) = (
        run(server, "key", *arguments),
        kes_on_terminal("key", *arguments, env=server.environment),
    )
    assert (piped.code, piped.stdout, code) == (1, "", 1)
    for text in (piped.stderr, shown):
        assert "now use 'kes key import NAME' and give it on stdin" in text
        assert SECRET not in text
        assert URL_SAFE not in text
    assert run(server, "key", "ls", "o").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("create", "no key name specified. See 'kes key create --help'"),
        ("rm", "no key name specified. See 'kes key rm --help'"),
        ("info", "no key name specified. See 'kes key info --help'"),
        ("info a b", "too many arguments. See 'kes key info --help'"),
        ("ls a b", "too many arguments. See 'kes key ls --help'"),
        ("import", "no key name specified. See 'kes key import --help'"),
        ("import a", "no crypto key specified. See 'kes key import --help'"),
        ("import a b c", "too many arguments. See 'kes key import --help'"),
        ("import a !AAA", "invalid key: illegal base64 data at input byte 0. See 'kes key import --help'"),
        ("import a AAAA", "invalid key: 32 bytes are needed, not 3. See 'kes key import --help'"),
        ("import a AAAAA", "invalid key: illegal base64 data at input byte 4. See 'kes key import --help'"),
        ("encrypt", "no key name specified. See 'kes key encrypt --help'"),
        ("encrypt a", "no message specified. See 'kes key encrypt --help'"),
        ("encrypt a b c", "too many arguments. See 'kes key encrypt --help'"),
        ("decrypt a", "no ciphertext specified. See 'kes key decrypt --help'"),
        ("decrypt a AA_A", "invalid ciphertext: illegal base64 data at input byte 2. See 'kes key decrypt --help'"),
        ("decrypt a AAAA x", "invalid context: illegal base64 data at input byte 0. See 'kes key decrypt --help'"),
        ("decrypt a AAAA AAAA b", "too many arguments. See 'kes key decrypt --help'"),
        ("dek", "no key name specified. See 'kes key dek --help'"),
        ("dek a x", "invalid context: illegal base64 data at input byte 0. See 'kes key dek --help'"),
        ("derive a AAAA b", "too many arguments. See 'kes key derive --help'"),
    ],
)
def test_wrong_arguments_are_told_before_a_server_is_asked(arguments: str, error: str) -> None:
    assert kes("key", *arguments.split()) == (1, "", f"Error: {error}\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        *(
            (
                ["create", name],
                f"failed to create key \"{name}\": key name '{name}' is empty, too long or contains invalid characters",
            )
            for name in ("a b", "a/b", "../x", ".", "..")
        ),
        (["info", "none"], 'failed to describe key "none": key does not exist'),
        (["dek", "none"], "failed to derive key: key does not exist"),
        (["encrypt", "none", "x"], "failed to encrypt message: key does not exist"),
        (["decrypt", "none", "AAAA"], "failed to decrypt ciphertext: key does not exist"),
    ],
)
def test_what_the_server_says_is_passed_on(server: RunningServer, arguments: list[str], error: str) -> None:
    assert run(server, "key", *arguments) == (1, "", f"Error: {error}\n")


def test_who_may_not_is_told_so(server: RunningServer) -> None:
    for key in (USER, APIKey.generate()):
        assert run(server, "key", "create", "x", env={"KES_API_KEY": key.text}) == (
            1,
            "",
            'Error: failed to create key "x": not authorized: insufficient permissions\n',
        )


def test_more_keys_than_one_page_are_listed(server: RunningServer) -> None:
    names = [f"page-{number:04}" for number in range(1100)]
    with server.client() as client:
        for name in names:
            client.create_key(name)
        assert json.loads(run(server, "key", "ls", "--json", "page-").stdout) == names
        assert json.loads(run(server, "ls", "--json", "page-").stdout) == names
        assert run(server, "key", "ls", "page-10*").stdout.split() == ["Key", *names[1000:]]
        for name in names:
            client.delete_key(name)


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path) -> None:
    with start_server(tmp_path) as server:
        for number in range(5000):  # far more than a pipe holds
            (tmp_path / "keys" / f"a-long-name-of-a-key-{number:04}").write_bytes(b"x")
        done = subprocess.run(
            ["bash", "-c", '"$@" key ls | head -1; echo ${PIPESTATUS[0]}', "bash", *COMMAND],
            capture_output=True,
            env=clean_environment(server.environment),
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("Key\n1\n", "")
        assert run(server, "key", "ls").stdout.count("\n") == 5001


def test_many_keys_show_a_bar_on_a_terminal(tmp_path: Path) -> None:
    seen, calls = threading.Event(), itertools.count(1)

    def reply(method: str, path: str) -> Answer:
        if next(calls) == 3:
            assert seen.wait(60)
        return Answer()

    with fake_server(tmp_path, reply) as server:
        environment = {"KES_SERVER": server.endpoint, "KES_API_KEY": USER.text}
        for command, what in (("create", "Creating keys"), ("rm", "Deleting keys")):
            seen.clear()
            calls = itertools.count(1)
            with Terminal("key", command, "-k", "a", "b", "c", "d", env=environment) as terminal:
                terminal.wait_for(what)
                terminal.wait_for("2 of 4")
                seen.set()
                assert terminal.wait() == 0
                assert (terminal.shown, terminal.is_clean) == ("", True)


def test_an_interrupt_takes_the_bar_away(tmp_path: Path) -> None:
    ended = threading.Event()
    with fake_server(tmp_path, lambda *_: Answer(silent=not ended.wait(60))) as server:
        environment = {"KES_SERVER": server.endpoint, "KES_API_KEY": USER.text}
        with Terminal("key", "create", "-k", "a", "b", env=environment) as terminal:
            terminal.wait_for("Creating keys")
            terminal.press_ctrl_c()
            assert terminal.wait() == 1
            assert terminal.is_clean
            assert terminal.shown == ""
        ended.set()


def test_names_cannot_move_the_cursor(tmp_path: Path) -> None:
    body = json.dumps({"names": ["a\x1b[2Jb"]}).encode()
    with fake_server(tmp_path, lambda *_: Answer(body=body)) as server:
        environment = {"KES_SERVER": server.endpoint, "KES_API_KEY": USER.text, "NO_COLOR": "1"}
        assert kes_on_terminal("key", "ls", "-k", env=environment) == (0, "Key\na\\x1b[2Jb\n")
        assert kes_on_terminal("key", "list", "-k", env=environment) == (0, "a\\x1b[2Jb\n")
        assert kes("key", "ls", "-k", env=environment).stdout == "Key\na\x1b[2Jb\n"


def test_what_may_have_been_done_is_told(tmp_path: Path) -> None:
    with fake_server(tmp_path, lambda *_: Answer(silent=True)) as server:
        env = {"KES_SERVER": server.endpoint, "KES_CA_FILE": str(server.ca_file), "KES_API_KEY": APIKey.generate().text}
        code, stdout, stderr = kes("key", "create", "k", env=env)
        assert (code, stdout) == (1, "")
        assert stderr.startswith('Error: failed to create key "k": ')
        assert stderr.endswith("; the server may have done it nevertheless\n")
        assert "nevertheless" not in kes("key", "info", "k", env=env).stderr


@pytest.mark.parametrize("overrides", [{}, {"compatibility": "2021", "tls": {"auth": "off"}}], ids=["2025", "2021"])
def test_the_list_of_2021_takes_a_glob(tmp_path: Path, overrides: dict[str, Any]) -> None:
    names = ["aa", "aab", "ab", "ba", "my-app-1", "my-app-2"]
    with start_server(tmp_path, policy={"app": {}, "app-2": {}}, **overrides) as server:
        with server.client() as client:
            for name in names:
                client.create_key(name)

        def listed(*arguments: str) -> list[str]:
            done = run(server, "key", "list", *arguments)
            assert (done.code, done.stderr) == (0, "")
            return [json.loads(line)["name"] for line in done.stdout.splitlines()]

        assert listed() == listed("*") == names
        assert listed("aa") == ["aa"]
        assert listed("[ab]a") == ["aa", "ba"]
        assert listed("*a") == ["aa", "ba"]
        assert listed("my-app-?") == ["my-app-1", "my-app-2"]
        assert listed("none*") == []
        assert run(server, "policy", "list", "app").stdout == '["app"]\n'
        assert run(server, "policy", "list", "app*").stdout == '["app","app-2"]\n'
        assert "is malformed" in run(server, "key", "list", "[a").stderr
