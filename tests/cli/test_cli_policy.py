"""`kes policy`, and what `kes identity` asks the server, against a real one."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from keswick.identity import APIKey
from support.cli import Result, kes, kes_on_terminal
from support.fake_server import Answer, fake_server
from support.server import RunningServer, start_server

USER = APIKey.generate()
ALLOW, DENY = ["/v1/key/list/*", "/v1/key/create/app*", "/v1/identity/*"], ["/v1/key/create/app-x*"]
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    policy = {
        "app": {"allow": ALLOW, "deny": DENY, "identities": [USER.identity]},
        "app-empty": {"allow": []},
        "other": {"allow": ["/version"]},
    }
    with start_server(tmp_path_factory.mktemp("server"), policy=policy) as server:
        yield server


@pytest.fixture(scope="module")
def admin(server: RunningServer) -> str:
    return APIKey.parse(server.api_key).identity


def run(server: RunningServer, *arguments: str, api_key: str = "", **env: str) -> Result:
    own = {"KES_API_KEY": api_key} if api_key else {}
    return kes(*arguments, env={**server.environment, **own, **env})


def on_terminal(server: RunningServer, *arguments: str, api_key: str = "", **env: str) -> tuple[int, str]:
    own = {"KES_API_KEY": api_key} if api_key else {}
    return kes_on_terminal(*arguments, env={**server.environment, **own, **env})


# --- policies ---


def test_policy_info(server: RunningServer, admin: str) -> None:
    result = run(server, "policy", "info", "app")
    assert result.code == 0
    assert re.fullmatch(rf"Name        app\nDate        {DATE}\nCreated by  {admin}\n", result.stdout)
    line = run(server, "policy", "info", "app", "--json", "-k", "-e", "x", "--color", "never").stdout
    assert re.fullmatch(rf'{{"name":"app","created_at":"{TIME}","created_by":"{admin}"}}\n', line)


def test_dates_of_policies_are_in_local_time(server: RunningServer) -> None:
    east = run(server, "policy", "info", "app", TZ="UTC-5").stdout
    west = run(server, "policy", "info", "app", TZ="UTC+5").stdout
    dates = [re.search(DATE, text) for text in (east, west)]
    assert dates[0] is not None
    assert dates[1] is not None
    assert dates[0][0] > dates[1][0]


def test_policy_lists(server: RunningServer) -> None:
    assert run(server, "policy", "ls") == (0, "Policy\napp\napp-empty\nother\n", "")
    assert run(server, "policy", "ls", "app-") == (0, "Policy\napp-empty\n", "")
    assert run(server, "policy", "ls", "app*", "--json") == (0, '["app","app-empty"]\n', "")
    assert run(server, "policy", "ls", "none") == (0, "", "")
    assert run(server, "policy", "ls", "none", "--json") == (0, "null\n", "")
    assert run(server, "policy", "ls", "other", "--color=always").stdout == "\x1b[4mPolicy\x1b[0m\nother\n"
    assert on_terminal(server, "policy", "ls", "other") == (0, "\x1b[4mPolicy\x1b[0m\nother\n")


def test_policy_list_of_2021(server: RunningServer) -> None:
    assert run(server, "policy", "list", "app*") == (0, '["app","app-empty"]\n', "")
    assert run(server, "policy", "list", "none") == (0, "[]\n", "")
    assert on_terminal(server, "policy", "list", "app*") == (0, "[\n  app\n  app-empty\n]\n")


def test_policy_show_piped(server: RunningServer, admin: str) -> None:
    result = run(server, "policy", "show", "app")
    assert result.code == 0
    shown = json.loads(result.stdout)
    assert list(shown) == ["allow", "deny", "created_at", "created_by"]
    assert shown["allow"] == {rule: {} for rule in ALLOW}
    assert shown["deny"] == {rule: {} for rule in DENY}
    assert shown["created_by"] == admin
    assert " " not in result.stdout
    assert list(json.loads(run(server, "policy", "show", "app-empty").stdout)) == ["created_at", "created_by"]


def test_policy_show_on_a_terminal(server: RunningServer, admin: str) -> None:
    code, shown = on_terminal(server, "policy", "show", "app")
    assert code == 0
    listed = "".join(f"  · {rule}\n" for rule in ALLOW)
    assert re.fullmatch(
        re.escape(f"Allow:\n{listed}\nDeny:\n  · {DENY[0]}\n\n\n") + f"Created at: {DATE}\nCreated by: {admin}\n", shown
    )
    assert on_terminal(server, "policy", "show", "app", "--json")[1].startswith('{"allow":{"/v1/key/list/*":{}')


def test_rules_of_every_generation_are_shown_as_objects(tmp_path: Path) -> None:
    for body in (b'{"paths":["/v1/*"]}', b'{"allow":["/v1/*"],"deny":[]}', b'{"allow":{"/v1/*":{}}}'):
        with fake_server(tmp_path, lambda *_, body=body: Answer(body=body)) as server:
            environment = {"KES_SERVER": server.endpoint, "KES_API_KEY": USER.text}
            assert kes("policy", "show", "p", "-k", env=environment) == (0, '{"allow":{"/v1/*":{}}}\n', "")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("info", "no policy name specified. See 'kes policy info --help'"),
        ("show", "no policy name specified. See 'kes policy show --help'"),
        ("info a b", "too many arguments. See 'kes policy info --help'"),
        ("show a b", "too many arguments. See 'kes policy show --help'"),
        ("ls a b", "too many arguments. See 'kes policy ls --help'"),
        ("list a b", "too many arguments. See 'kes policy list --help'"),
        (
            "info a --color x",
            'invalid argument "x" for "--color" flag: invalid color option. See \'kes policy info --help\'',
        ),
        ("nfo", "\"nfo\" is not a policy command. Did you mean 'info'? See 'kes policy --help'"),
    ],
)
def test_wrong_calls_of_policy_are_told(arguments: str, error: str) -> None:
    assert kes("policy", *arguments.split()) == (1, "", f"Error: {error}\n")


def test_what_the_server_refuses_is_told(server: RunningServer) -> None:
    assert run(server, "policy", "info", "none").stderr == (
        'Error: failed to describe policy "none": policy does not exist\n'
    )
    assert (
        run(server, "policy", "show", "none").stderr == 'Error: failed to show policy "none": policy does not exist\n'
    )
    assert run(server, "policy", "ls", api_key=USER.text).stderr == (
        "Error: failed to list policies: not authorized: insufficient permissions\n"
    )


# --- identities ---


def test_who_the_client_is(server: RunningServer, admin: str) -> None:
    result = run(server, "identity", "info")
    assert result.code == 0
    assert re.fullmatch(rf"Identity    {admin}\nCreated At  {DATE}\nRole        Admin\n", result.stdout)
    user = run(server, "identity", "info", api_key=USER.text)
    assert re.fullmatch(
        rf"Identity    {USER.identity}\nCreated At  {DATE}\nRole        User\nCreated By  {admin}\n\n"
        rf"Policy      app\nCreated At  {DATE}\n"
        + re.escape(f"Allow       · {ALLOW[0]}\n            · {ALLOW[1]}\n            · {ALLOW[2]}\n")
        + re.escape(f"Deny        · {DENY[0]}\n"),
        user.stdout,
    )
    _, shown = on_terminal(server, "identity", "info", api_key=USER.text)
    assert "\n\x1b[32mAllow\x1b[0m       · " in shown
    assert re.sub("\x1b\\[\\d+m", "", shown) == user.stdout
    assert on_terminal(server, "identity", "info", "--color=never", api_key=USER.text)[1] == user.stdout


def test_who_the_client_is_as_json(server: RunningServer, admin: str) -> None:
    own = json.loads(run(server, "identity", "info", "--json").stdout)
    assert own == {"identity": admin, "admin": True, "created_at": own["created_at"]}
    user = json.loads(run(server, "identity", "info", "--json", api_key=USER.text).stdout)
    assert list(user) == ["identity", "admin", "created_at", "created_by", "policy"]
    assert list(user["policy"]) == ["name", "allow", "deny", "created_at", "created_by"]
    assert user["policy"]["allow"] == {rule: {} for rule in ALLOW}


def test_any_identity(server: RunningServer, admin: str) -> None:
    assert re.fullmatch(
        rf"Identity    {USER.identity}\nPolicy      app\nCreated At  {DATE}\nRole        User\nCreated By  {admin}\n",
        run(server, "identity", "info", USER.identity).stdout,
    )
    as_json = json.loads(run(server, "identity", "info", USER.identity, "--json", "-e", "x").stdout)
    assert (as_json["identity"], as_json["admin"], as_json["policy"]) == (USER.identity, False, {"name": "app"})
    assert run(server, "identity", "info", "0" * 64) == (1, "", "Error: identity does not exist\n")


def test_a_client_that_no_policy_names_is_told_who_it_is(server: RunningServer) -> None:
    nobody = APIKey.generate()
    shown = run(server, "identity", "info", api_key=nobody.text).stdout
    assert re.fullmatch(rf"Identity    {nobody.identity}\nCreated At  {DATE}\nRole        User\n", shown)


def test_identity_lists(server: RunningServer, admin: str) -> None:
    both = sorted([admin, USER.identity])
    assert run(server, "identity", "ls").stdout.split() == ["Identity", *both]
    assert run(server, "identity", "ls", USER.identity[:20]).stdout == f"Identity\n{USER.identity}\n"
    assert json.loads(run(server, "identity", "ls", "--json", api_key=USER.text).stdout) == both
    assert run(server, "identity", "ls", "x", "--json").stdout == "null\n"
    assert on_terminal(server, "identity", "ls", "--color", "never", USER.identity)[1] == f"Identity\n{USER.identity}\n"


def test_identity_list_of_2021(server: RunningServer) -> None:
    assert run(server, "identity", "list") == (0, f'{{"identity":"{USER.identity}","policy":"app"}}\n', "")
    assert on_terminal(server, "identity", "list") == (0, f"{USER.identity} => app\n")
    assert run(server, "identity", "list", "x") == (0, "", "")
