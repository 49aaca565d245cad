"""Policies and assignments at run time, as they are typed: in the words of 2021 and of 2022, and everything that is
refused."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from keswick.identity import APIKey
from support.api import Caller, new_pair
from support.cli import Result, kes, kes_on_terminal
from support.fake_server import Answer, fake_server
from support.server import RunningServer, running, start_server
from support.sockets import free_port

APP, OTHER, LEADER = (APIKey.generate() for _ in range(3))
POLICY = '{"allow":["/v1/key/generate/my-*"],"deny":["/v1/key/generate/my-secret"]}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    allow = ["/v1/policy/write/*", "/v1/identity/assign/*", "/v1/policy/delete/*", "/v1/identity/forget/*"]
    leaders = {"allow": allow, "identities": [LEADER.identity]}
    folder = tmp_path_factory.mktemp("server")
    with start_server(folder, runtime_policies="on", policy={"leaders": leaders}) as server:
        yield server


def run(server: RunningServer, *arguments: str, stdin: str = "", api_key: APIKey | None = None) -> Result:
    environment = server.environment | ({"KES_API_KEY": api_key.text} if api_key else {})
    return kes(*arguments, env=environment, stdin=stdin.encode())


def failure(result: Result) -> str:
    assert (result.code, result.stdout) == (1, "")
    return result.stderr.removeprefix("Error: ").removesuffix("\n")


# --- the story that an operator of 2021 knows ---

CONFIG_2021 = """\
address: 127.0.0.1:0
root: {root}
tls:
  key: {folder}/server.key
  cert: {folder}/server.cert
keys:
  fs:
    path: {folder}/keys
"""

Typed = Callable[..., tuple[int, str]]
"""A command with its environment, typed somewhere: the exit code and all that is printed."""


def typed_into_a_pipe(*arguments: str, env: dict[str, str]) -> tuple[int, str]:
    code, stdout, stderr = kes(*arguments, env=env)
    return code, stdout + stderr


def typed_on_a_terminal(*arguments: str, env: dict[str, str]) -> tuple[int, str]:
    return kes_on_terminal(*arguments, env=env)


@pytest.mark.parametrize("typed", [typed_into_a_pipe, typed_on_a_terminal])
def test_the_story_of_2021(tmp_path: Path, typed: Typed) -> None:
    terminal = typed is typed_on_a_terminal
    nothing: dict[str, str] = {}
    for name, *flags in (("root",), ("app",), ("server", "--server", "--ip=127.0.0.1", "--dns=localhost")):
        key, cert = (f"--{kind}={tmp_path}/{name}.{kind}" for kind in ("key", "cert"))
        assert typed("tool", "identity", "new", key, cert, *flags, name, env=nothing) == (0, "")
    root, app = (
        re.sub(r"\s+|Identity:", "", typed("tool", "identity", "of", str(tmp_path / f"{name}.cert"), env=nothing)[1])
        for name in ("root", "app")
    )
    assert len(root) == len(app) == 64
    config = tmp_path / "config.yml"
    config.write_text(CONFIG_2021.format(folder=tmp_path, root=root))
    (tmp_path / "my-app.json").write_text('{"paths": ["/v1/key/generate/my-*", "/v1/key/decrypt/my-*"]}')

    def server() -> AbstractContextManager[RunningServer]:
        return running(["server", f"--config={config}", "--auth=off"], tmp_path, APIKey.generate())

    def as_(name: str, *arguments: str) -> tuple[int, str]:
        environment = {"KES_SERVER": running_server.endpoint, "NO_COLOR": "1"}
        environment |= {f"KES_CLIENT_{kind.upper()}": str(tmp_path / f"{name}.{kind}") for kind in ("key", "cert")}
        return typed(*arguments, env=environment)

    refused = (1, "Error: failed to derive key: prohibited by policy\n")
    with server() as running_server:
        assert as_("root", "key", "create", "-k", "my-key") == (0, "")
        code, made = as_("root", "key", "derive", "-k", "my-key")
        assert code == 0
        assert ("plaintext:" in made) if terminal else ({"plaintext", "ciphertext"} == set(json.loads(made)))
        assert as_("app", "key", "derive", "-k", "my-key") == refused

        assert as_("root", "policy", "add", "-k", "my-app", str(tmp_path / "my-app.json")) == (0, "")
        assert as_("root", "policy", "list", "-k") == (0, "[\n  my-app\n]\n" if terminal else '["my-app"]\n')
        assert "/v1/key/generate/my-*" in as_("root", "policy", "show", "-k", "my-app")[1]
        assert as_("root", "identity", "assign", "-k", app, "my-app") == (0, "")
        listed = f"{app} => my-app\n" if terminal else f'{{"identity":"{app}","policy":"my-app"}}\n'
        assert as_("root", "identity", "list", "-k") == (0, listed)

        code, made = as_("app", "key", "derive", "-k", "my-key")
        assert code == 0
        sealed = re.split(r"[\s\"]+", made.strip('"}\n'))[-1]
        assert as_("app", "key", "decrypt", "-k", "my-key", sealed)[0] == 0
        assert as_("app", "key", "create", "-k", "another") == (
            1,
            'Error: failed to create key "another": prohibited by policy\n',
        )

        assert as_("root", "identity", "forget", "-k", app) == (0, "")
        assert as_("app", "key", "derive", "-k", "my-key") == refused
        assert as_("root", "identity", "assign", "-k", app, "my-app") == (0, "")
        assert as_("root", "policy", "delete", "-k", "my-app") == (0, "")
        assert as_("root", "policy", "delete", "-k", "my-app") == (0, "")  # as it was then
        assert as_("app", "key", "derive", "-k", "my-key") == refused
        assert as_("root", "policy", "add", "-k", "my-app", str(tmp_path / "my-app.json")) == (0, "")
        assert as_("root", "identity", "assign", "-k", app, "my-app") == (0, "")
        assert as_("app", "key", "derive", "-k", "my-key")[0] == 0
        assert running_server.stop() == 0
    with server() as running_server:  # it has forgotten all that
        assert as_("root", "policy", "list", "-k") == (0, "[\n]\n" if terminal else "[]\n")
        assert as_("app", "key", "derive", "-k", "my-key") == refused
        assert as_("root", "key", "derive", "-k", "my-key")[0] == 0


# --- a server of today ---


def test_the_words_of_2022(server: RunningServer, tmp_path: Path) -> None:
    assert run(server, "key", "create", "my-key", "my-secret") == (0, "", "")
    file = tmp_path / "my-app.json"
    file.write_text(POLICY)
    assert run(server, "policy", "create", "my-app", str(file)) == (0, "", "")
    assert run(server, "policy", "assign", "my-app", APP.identity, OTHER.identity) == (0, "", "")
    for key in (APP, OTHER):
        assert run(server, "key", "dek", "my-key", api_key=key).code == 0
        assert run(server, "key", "dek", "my-secret", api_key=key).code == 1
    assert run(server, "identity", "rm", APP.identity, OTHER.identity, APP.identity) == (0, "", "")
    assert run(server, "key", "dek", "my-key", api_key=APP).code == 1
    assert run(server, "policy", "create", "other", "-", stdin="{}") == (0, "", "")
    assert run(server, "policy", "rm", "my-app", "other", "-e", "ignored") == (0, "", "")
    assert run(server, "policy", "ls").stdout == "Policy\nleaders\n"
    assert failure(run(server, "policy", "rm", "my-app")) == 'failed to delete policy "my-app": policy does not exist'
    assert run(server, "key", "rm", "my-key", "my-secret").code == 0


@pytest.mark.parametrize(
    ("written", "allow", "deny"),
    [
        ('{"allow":["/v1/a"],"deny":["/v1/b"]}', ["/v1/a"], ["/v1/b"]),
        ('{"paths":["/v1/a","/v1/b*"]}', ["/v1/a", "/v1/b*"], []),
        ('{"allow":{"/v1/a":{}},"deny":{"/v1/b":{}},"created_at":"then","created_by":"me"}', ["/v1/a"], ["/v1/b"]),
        ('\ufeff{"deny":["/v1/b"],"allow":null}\n', [], ["/v1/b"]),
        ("{}", [], []),
    ],
)
def test_every_form_of_a_policy_is_read(server: RunningServer, written: str, allow: list[str], deny: list[str]) -> None:
    for arguments in (["add", "p"], ["add", "p", "-"], ["create", "p", "-"]):
        assert run(server, "policy", *arguments, stdin=written) == (0, "", "")
        shown = json.loads(run(server, "policy", "show", "p").stdout)
        assert (list(shown.get("allow", [])), list(shown.get("deny", []))) == (allow, deny)
        assert run(server, "policy", "delete", "p").code == 0


def test_what_is_shown_can_be_written_again(server: RunningServer) -> None:
    run(server, "policy", "add", "one", stdin=POLICY)
    assert run(server, "policy", "add", "two", stdin=run(server, "policy", "show", "one").stdout).code == 0
    one, two = (json.loads(run(server, "policy", "show", name).stdout) for name in ("one", "two"))
    assert (one["allow"], one["deny"]) == (two["allow"], two["deny"])
    assert run(server, "policy", "rm", "one", "two").code == 0


def test_on_a_terminal_not_a_word(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "my-app.json"
    file.write_text(POLICY)
    for arguments in (
        ["policy", "add", "t", str(file)],
        ["policy", "assign", "t", APP.identity],
        ["identity", "assign", APP.identity, "t"],
        ["identity", "forget", APP.identity],
        ["policy", "delete", "t"],
    ):
        assert kes_on_terminal(*arguments, env=server.environment) == (0, "")
    code, shown = kes_on_terminal("policy", "add", "t", env=server.environment)
    assert code == 1
    assert "no policy specified: standard input is a terminal; write the policy into a pipe or a file" in shown


def test_the_list_of_a_server_of_2021(tmp_path: Path) -> None:
    body = f'{{"identity":"{APP.identity}","policy":"app"}}\n'.encode()

    def reply(method: str, path: str) -> Answer:
        if path.startswith("/v1/identity/list/"):
            return Answer(body=body, content_type="application/x-ndjson")
        return Answer(404, b"404 page not found\n", "text/plain")

    with fake_server(tmp_path, reply) as old:
        environment = {"KES_SERVER": old.endpoint, "KES_API_KEY": APP.text}
        assert kes("identity", "list", "-k", env=environment) == (0, body.decode(), "")


@pytest.mark.parametrize("dialect", ["2021", "2022", "2023"])
def test_the_right_to_list_identities_is_enough(tmp_path: Path, dialect: str) -> None:
    policy = {"ops": {"allow": ["/v1/identity/list/*"], "identities": [APP.identity]}}
    with start_server(tmp_path, compatibility=dialect, tls={"auth": "off"}, policy=policy) as server:
        listed = run(server, "identity", "list", api_key=APP)
        assert listed == (0, f'{{"identity":"{APP.identity}","policy":"ops"}}\n', "")


def test_who_is_forgotten_while_identities_are_listed_is_left_out(tmp_path: Path) -> None:
    def reply(method: str, path: str) -> Answer:
        if path.startswith("/v1/identity/list/"):
            return Answer(body=json.dumps({"identities": [APP.identity, OTHER.identity]}).encode())
        if path.endswith(APP.identity):
            return Answer(404, b'{"message":"identity does not exist"}')
        return Answer(body=b'{"policy":"app"}')

    with fake_server(tmp_path, reply) as server:
        environment = {"KES_SERVER": server.endpoint, "KES_API_KEY": APP.text}
        listed = f'{{"identity":"{OTHER.identity}","policy":"app"}}\n'
        assert kes("identity", "list", "-k", env=environment) == (0, listed, "")


def test_rules_written_as_paths_are_shown_so_to_clients_of_2021(tmp_path: Path) -> None:
    pair = new_pair()
    reader = Caller(0, pair, tmp_path).identity
    policy = {"filed": {"allow": ["/v1/policy/read/*"], "identities": [reader]}}
    with start_server(tmp_path, compatibility="2021", tls={"auth": "off"}, policy=policy) as server:
        assert run(server, "policy", "add", "paths", stdin='{"paths":["/v1/key/create/z*"]}').code == 0
        assert run(server, "policy", "add", "rules", stdin='{"allow":["/v1/key/create/z*"]}').code == 0
        assert run(server, "policy", "show", "paths").stdout == '{"allow":{"/v1/key/create/z*":{}}}\n'
        caller = Caller(server.port, pair, tmp_path)
        read = {name: caller.call("GET", f"/v1/policy/read/{name}").json for name in ("filed", "paths", "rules")}
        assert read == {
            "filed": {"paths": ["/v1/policy/read/*"]},
            "paths": {"paths": ["/v1/key/create/z*"]},
            "rules": {"allow": ["/v1/key/create/z*"], "deny": []},
        }


def test_a_word_that_is_nobodys_identity_can_be_forgotten(tmp_path: Path) -> None:
    policy = {"ops": {"allow": ["/v1/status"], "identities": ["_"]}}
    with start_server(tmp_path, compatibility="2021", tls={"auth": "off"}, policy=policy) as server:
        assert run(server, "identity", "list").stdout == '{"identity":"_","policy":"ops"}\n'
        assert run(server, "identity", "forget", "_") == (0, "", "")
        assert run(server, "identity", "list").stdout == ""


def test_of_several_servers_each_is_told(server: RunningServer, tmp_path: Path) -> None:
    with start_server(
        tmp_path, admin={"identity": APIKey.parse(server.api_key).identity}, runtime_policies="on"
    ) as two:
        cas = tmp_path / "cas.pem"
        cas.write_text(server.ca_file.read_text() + two.ca_file.read_text())
        environment = {"KES_API_KEY": server.api_key, "KES_CA_FILE": str(cas)}
        both = environment | {"KES_SERVER": f"{server.endpoint},{two.endpoint}"}
        assert kes("policy", "add", "p", env=both, stdin=b"{}") == (0, "", "")
        assert kes("policy", "assign", "p", APP.identity, env=both) == (0, "", "")
        for one in (server, two):
            shown = kes("identity", "list", env=environment | {"KES_SERVER": one.endpoint}).stdout
            assert f'{{"identity":"{APP.identity}","policy":"p"}}\n' in shown
        assert kes("policy", "rm", "p", env=environment | {"KES_SERVER": two.endpoint}).code == 0
        assert failure(kes("policy", "rm", "p", env=both)) == (
            f'{two.endpoint}: failed to delete policy "p": policy does not exist'
        )
        away = environment | {"KES_SERVER": f"{server.endpoint},127.0.0.1:{free_port()}"}
        assert "connection refused" in failure(kes("policy", "add", "p", env=away, stdin=b"{}"))
        assert run(server, "policy", "rm", "p").code == 0


# --- what is refused ---


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("", "standard input: this is not JSON: line 1, column 1: Expecting value"),
        (
            '{"allow": ["/v1/a"\n"/v1/b"]}',
            "standard input: this is not JSON: line 2, column 1: Expecting ',' delimiter",
        ),
        ("[" * 100_000, "standard input: this is not JSON"),
        ('["/v1/a"]', 'standard input: this is not a policy, such as {"allow": ["/v1/key/generate/my-app-*"]}'),
        ('{"alow": []}', "standard input: unknown field \"alow\". Did you mean 'allow'?"),
        ('{"identities": ["a"]}', 'standard input: unknown field "identities"'),
        ('{"allow": ["/v1/a"], "allow": []}', 'standard input: "allow" stands there twice'),
        (
            '{"allow": [], "paths": []}',
            "standard input: 'paths' is what 'allow' was called until 2021; write 'allow' and 'deny'",
        ),
        *(
            (
                json.dumps({"deny": wrong}),
                "standard input: 'deny' must be a list of rules, such as [\"/v1/key/generate/my-app-*\"]",
            )
            for wrong in ("/v1/a", 7, ["/v1/a", 7], True)
        ),
        (
            '{"allow": ["/v1/key/[a"]}',
            "standard input: allow: the rule '/v1/key/[a' is malformed at character 9: the class that opens with '[' "
            "is not closed, write '\\[' for the character itself",
        ),
        (
            '{"paths": ["/v1/key\\\\"]}',
            "standard input: paths: the rule '/v1/key\\\\' is malformed at character 8: there is no character "
            "after the backslash",
        ),
    ],
)
def test_a_policy_that_is_none_is_not_sent(written: str, error: str) -> None:
    ending = "" if error.endswith("?") else "."
    assert failure(kes("policy", "add", "p", stdin=written.encode())) == f"{error}{ending} See 'kes policy add --help'"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing, large, binary = (tmp_path / name for name in ("missing", "large", "binary"))
    large.write_bytes(b" " * ((1 << 20) + 1))
    binary.write_bytes(b"\xff\xfe\x00")
    assert failure(kes("policy", "create", "p", str(missing))) == f"{missing}: No such file or directory"
    assert failure(kes("policy", "create", "p", str(large))).startswith(f"'{large}' is longer than 1024 KiB")
    assert failure(kes("policy", "create", "p", str(binary))).startswith(f"'{binary}': this is not JSON")


IDENTITY = APP.identity


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("policy add", "no policy name specified. See 'kes policy add --help'"),
        ("policy add a b c", "too many arguments. See 'kes policy add --help'"),
        ("policy create", "no policy name specified. See 'kes policy create --help'"),
        ("policy create a", "no policy file specified. See 'kes policy create --help'"),
        ("policy create a b c", "too many arguments. See 'kes policy create --help'"),
        ("policy rm", "no policy name specified. See 'kes policy rm --help'"),
        ("policy delete", "no policy name specified. See 'kes policy delete --help'"),
        ("policy assign", "no policy name specified. See 'kes policy assign --help'"),
        ("policy assign a", "no identity specified. See 'kes policy assign --help'"),
        ("identity assign", "no identity specified. See 'kes identity assign --help'"),
        (f"identity assign {IDENTITY}", "no policy name specified. See 'kes identity assign --help'"),
        (f"identity assign {IDENTITY} a b", "too many arguments. See 'kes identity assign --help'"),
        ("identity forget", "no identity specified. See 'kes identity forget --help'"),
        ("identity rm", "no identity specified. See 'kes identity rm --help'"),
        (
            f"identity assign my-app {IDENTITY}",
            f"\"my-app\" is not an identity. Did you mean 'kes identity assign {IDENTITY} my-app'? "
            "See 'kes identity assign --help'",
        ),
        (
            f"policy assign {IDENTITY} my-app",
            f"\"my-app\" is not an identity. Did you mean 'kes policy assign my-app {IDENTITY}'? "
            "See 'kes policy assign --help'",
        ),
        *(
            (
                f"{command} {wrong}",
                f'"{wrong}" is not an identity: those have 64 of the characters 0-9 a-f. '
                f"See 'kes {command.removesuffix(' my-app')} --help'",
            )
            for command in ("policy assign my-app",)
            for wrong in ("app", IDENTITY[:-1], IDENTITY.upper())
        ),
        (
            f"policy assign my-app {IDENTITY} other",
            "\"other\" is not an identity: those have 64 of the characters 0-9 a-f. See 'kes policy assign --help'",
        ),
    ],
)
def test_wrong_calls_are_told_before_a_server_is_asked(arguments: str, error: str) -> None:
    assert failure(kes(*arguments.split())) == error


def test_an_api_key_is_not_taken_for_an_identity_nor_shown() -> None:
    for arguments in (
        ["identity", "assign", APP.text, "my-app"],
        ["identity", "assign", APP.identity, APP.text],
        ["policy", "assign", APP.text, APP.identity],
        ["policy", "assign", APP.identity, APP.text],
        ["identity", "forget", APP.text],
        ["policy", "add", APP.text],
    ):
        error = failure(kes(*arguments, stdin=b"{}"))
        assert error.startswith("an argument is an API key, which is a secret; 'kes identity of -' tells")
        assert APP.text not in error


def test_what_the_server_refuses_is_told(server: RunningServer) -> None:
    admin = APIKey.parse(server.api_key).identity
    assert run(server, "policy", "add", "p", stdin="{}").code == 0
    assert failure(run(server, "identity", "assign", IDENTITY, "none")) == (
        f'failed to assign policy "none" to "{IDENTITY}": policy does not exist'
    )
    assert failure(run(server, "policy", "assign", "p", admin)) == (
        f'failed to assign policy "p" to "{admin}": identity is root'
    )
    assert failure(run(server, "identity", "forget", admin)) == f'failed to forget identity "{admin}": identity is root'
    assert failure(run(server, "identity", "assign", LEADER.identity, "p", api_key=LEADER)) == (
        f'failed to assign policy "p" to "{LEADER.identity}": identity cannot assign policy to itself'
    )
    assert failure(run(server, "policy", "add", "a b", stdin="{}")) == (
        "failed to create policy \"a b\": policy name 'a b' is empty, too long or contains invalid characters"
    )
    assert failure(run(server, "policy", "add", "a/../b", stdin="{}")) == (
        "failed to create policy \"a/../b\": policy name 'a/../b' is empty, too long or contains invalid characters"
    )
    assert failure(run(server, "policy", "rm", "p", api_key=APP)) == (
        'failed to delete policy "p": not authorized: insufficient permissions'
    )
    assert run(server, "policy", "rm", "p").code == 0


def test_a_server_without_them_says_how_to_get_them(tmp_path: Path) -> None:
    how = (
        "the server takes no policies at run time; write it into the server's configuration, or set "
        "'runtime_policies: on' there, as older forms of it imply"
    )
    with start_server(tmp_path) as server:
        for arguments, what in (
            (["policy", "add", "p"], 'failed to create policy "p"'),
            (["policy", "create", "p", "-"], 'failed to create policy "p"'),
            (["policy", "rm", "p"], 'failed to delete policy "p"'),
            (["policy", "assign", "p", IDENTITY], f'failed to assign policy "p" to "{IDENTITY}"'),
            (["identity", "assign", IDENTITY, "p"], f'failed to assign policy "p" to "{IDENTITY}"'),
            (["identity", "forget", IDENTITY], f'failed to forget identity "{IDENTITY}"'),
        ):
            assert failure(run(server, *arguments, stdin="{}")) == f"{what}: {how}"
