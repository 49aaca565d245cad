"""Policies and identities at run time: against real servers of several dialects, and scripted ones of other times."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from keswick import AsyncClient, NotAllowed
from keswick.client import (
    APIError,
    Client,
    IdentityIsAdmin,
    IdentityNotFound,
    InvalidName,
    InvalidPolicy,
    NotServed,
    PolicyNotFound,
    RunTimePoliciesOff,
    SelfAssignment,
)
from keswick.identity import APIKey
from support.fake_server import Answer, FakeServer, fake_server
from support.server import RunningServer, start_server

APP = APIKey.generate()
LEADER = APIKey.generate()
"""Who may write policies without being the administrator."""
OTHER = "5" * 64

LEADERS = {
    "allow": ["/v1/policy/write/*", "/v1/policy/assign/*", "/v1/identity/assign/*"],
    "identities": [LEADER.identity],
}

EACH: list[Callable[[Client], None]] = [
    lambda client: client.write_policy("a"),
    lambda client: client.delete_policy("a"),
    lambda client: client.assign_policy("a", OTHER),
    lambda client: client.forget_identity(OTHER),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    with start_server(folder, runtime_policies="on", policy={"leaders": LEADERS}) as server:
        yield server


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as client:
        yield client
        for name in set(client.list_policies()) - {"leaders"}:
            client.delete_policy(name)


# --- a server of today ---


def test_the_life_of_a_policy(server: RunningServer, client: Client) -> None:
    client.create_key("app-1")
    client.write_policy("app", allow=["/v1/key/generate/*"], deny=["/v1/key/generate/app-2"])
    policy = client.read_policy("app")
    assert (policy.allow, policy.deny) == (("/v1/key/generate/*",), ("/v1/key/generate/app-2",))
    assert policy.created_by == client.describe_self()[0].identity

    client.assign_policy("app", APP.identity)
    assert client.describe_identity(APP.identity).policy == "app"
    with server.client(APP.text) as app:
        assert len(app.generate_key("app-1").plaintext) == 32
        with pytest.raises(NotAllowed):
            app.generate_key("app-2")

        client.write_policy("other", allow=["/v1/status"])
        client.assign_policy("other", APP.identity)
        with pytest.raises(NotAllowed):
            app.generate_key("app-1")
        assert app.status().version

        client.forget_identity(APP.identity)
        with pytest.raises(NotAllowed):
            app.status()
        client.assign_policy("other", APP.identity)
        client.delete_policy("other")
        with pytest.raises(NotAllowed):
            app.status()
    assert "other" not in client.list_policies()


def test_all_may_be_done_twice(client: Client) -> None:
    for _ in range(2):
        client.write_policy("app")
        client.assign_policy("app", APP.identity)
    for _ in range(2):
        client.forget_identity(APP.identity)
    client.delete_policy("app")
    with pytest.raises(PolicyNotFound, match="policy does not exist; look for the name"):
        client.delete_policy("app")


def test_a_policy_without_rules_permits_nothing(server: RunningServer, client: Client) -> None:
    client.write_policy("app", allow=(), deny=())
    client.assign_policy("app", APP.identity)
    assert client.read_policy("app")[3:] == ((), ())
    with server.client(APP.text) as app, pytest.raises(NotAllowed):
        app.status()


def test_what_is_refused(server: RunningServer, client: Client) -> None:
    admin = client.describe_self()[0].identity
    client.write_policy("app")
    refusals: list[tuple[Callable[[], None], type[APIError], str]] = [
        (lambda: client.assign_policy("app", admin), IdentityIsAdmin, "identity is root; the server's configuration"),
        (lambda: client.forget_identity(admin), IdentityIsAdmin, "identity is root"),
        (lambda: client.assign_policy("none", OTHER), PolicyNotFound, "policy does not exist"),
        (lambda: client.write_policy("app", ["/v1/[a"]), InvalidPolicy, r"the rule '/v1/\[a' is malformed"),
        (lambda: client.write_policy("a b"), InvalidName, "policy name 'a b' is empty"),
        (lambda: client.delete_policy("-"), InvalidName, "policy name '-' is empty"),
        (lambda: client.assign_policy("app", "a/b"), InvalidName, "identity 'a/b' is empty"),
        (lambda: client.forget_identity("a b"), InvalidName, "identity 'a b' is empty"),
    ]
    for call, kind, words in refusals:
        with pytest.raises(kind, match=words):
            call()
    with server.client(LEADER.text) as leader:
        leader.write_policy("app", allow=["/v1/key/*"])
        leader.assign_policy("app", OTHER)
        with pytest.raises(SelfAssignment, match="identity cannot assign policy to itself; let the administrator"):
            leader.assign_policy("app", LEADER.identity)
        with pytest.raises(NotAllowed):
            leader.forget_identity(OTHER)
    client.forget_identity(OTHER)


def test_names_that_would_be_another_path_are_not_sent() -> None:
    client = Client("127.0.0.1:1")
    calls: list[tuple[Callable[[], None], str]] = [
        (lambda: client.write_policy("."), r"policy name '\.'"),
        (lambda: client.delete_policy(""), "policy name ''"),
        (lambda: client.assign_policy("..", OTHER), r"policy name '\.\.'"),
        (lambda: client.assign_policy("app", "a//b"), "identity 'a//b'"),
        (lambda: client.forget_identity(""), "identity ''"),
    ]
    for call, what in calls:
        with pytest.raises(ValueError, match=f"{what} is empty, too long or contains invalid characters"):
            call()
    with pytest.raises(TypeError, match="rules are a list of texts"):
        client.write_policy("app", allow="/v1/*")


@pytest.mark.parametrize(
    "overrides", [{}, {"compatibility": "2023", "runtime_policies": "off", "tls": {"auth": "off"}}]
)
def test_a_server_without_run_time_policies_says_how_to_get_them(tmp_path: Path, overrides: dict[str, Any]) -> None:
    with start_server(tmp_path, **overrides) as server, server.client() as client:
        for call in EACH:
            with pytest.raises(RunTimePoliciesOff, match="set 'runtime_policies: on' there"):
                call(client)


def test_with_asyncio(server: RunningServer, client: Client) -> None:
    async def story() -> tuple[str, ...]:
        async with AsyncClient(server.endpoint, api_key=server.api_key, ca_file=server.ca_file) as admin:
            await admin.write_policy("app", allow=(rule for rule in ["/v1/status"]))
            await admin.assign_policy("app", APP.identity)
            _, policy = await admin.describe_self()
            assert policy is None
            async with AsyncClient(server.endpoint, api_key=APP.text, ca_file=server.ca_file) as app:
                _, policy = await app.describe_self()
                assert policy is not None
                await admin.forget_identity(APP.identity)
                with pytest.raises(NotAllowed):
                    await app.status()
            await admin.delete_policy("app")
            with pytest.raises(PolicyNotFound):
                await admin.assign_policy("app", APP.identity)
            return policy.allow

    assert asyncio.run(story()) == ("/v1/status",)


# --- servers of other times ---


@pytest.mark.parametrize("dialect", ["2021", "2022", "2023"])
def test_the_dialects_of_old(tmp_path: Path, dialect: str) -> None:
    with start_server(tmp_path, compatibility=dialect, tls={"auth": "off"}) as server, server.client() as client:
        client.create_key("app-1")
        client.write_policy("app", allow=["/v1/key/generate/app-*"])
        client.write_policy("both", allow=["/v1/*"], deny=["/v1/key/*/*"])
        assert client.read_policy("app").allow == ("/v1/key/generate/app-*",)
        assert client.read_policy("both").deny == ("/v1/key/*/*",)
        assert list(client.list_policies()) == ["app", "both"]
        client.assign_policy("app", APP.identity)
        assert APP.identity in client.list_identities()
        with server.client(APP.text) as app:
            assert app.generate_key("app-1").plaintext
            client.forget_identity(APP.identity)
            with pytest.raises(NotAllowed):
                app.generate_key("app-1")
        client.delete_policy("app")
        client.delete_policy("app")  # what is gone is gone
        with pytest.raises(PolicyNotFound):
            client.assign_policy("app", APP.identity)
        with pytest.raises(IdentityIsAdmin):
            client.assign_policy("both", APIKey.parse(server.api_key).identity)
        with pytest.raises(APIError):
            client.write_policy("app", allow=["/v1/[a"])


def calls_of(server: FakeServer, what: Callable[[Client], None]) -> list[str]:
    server.calls.clear()
    with Client(server.endpoint, api_key=APP, ca_file=server.ca_file) as client:
        what(client)
    return server.calls


def test_what_is_sent(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        assert calls_of(server, lambda client: client.write_policy("a", ["x", "y"], ["z"])) == [
            'POST /v1/policy/write/a {"allow": ["x", "y"], "deny": ["z"]}'
        ]
        assert calls_of(server, lambda client: client.delete_policy("a")) == ["DELETE /v1/policy/delete/a"]
        assert calls_of(server, lambda client: client.assign_policy("a", OTHER)) == [
            f"POST /v1/identity/assign/a/{OTHER}"
        ]
        assert calls_of(server, lambda client: client.forget_identity(OTHER)) == [f"DELETE /v1/identity/forget/{OTHER}"]


def test_a_server_that_knows_paths_alone_gets_paths(tmp_path: Path) -> None:
    known = Answer(body=b'{"paths":["x"]}', content_type="text/plain; charset=utf-8")
    refused = Answer(400, b'{"message":"invalid json"}')
    replies = iter([refused, Answer()])
    with fake_server(tmp_path, lambda method, path: known if method == "GET" else next(replies)) as server:
        assert calls_of(server, lambda client: client.write_policy("a", ["x"])) == [
            'POST /v1/policy/write/a {"allow": ["x"], "deny": []}',
            'POST /v1/policy/write/a {"paths": ["x"]}',
        ]
        with Client(server.endpoint, api_key=APP, ca_file=server.ca_file) as client:
            assert client.read_policy("a").allow == ("x",)
            replies = iter([refused])
            with pytest.raises(APIError, match="invalid json"):  # its like has no way to deny anything
                client.write_policy("a", ["x"], ["y"])
            replies = iter([refused, refused])
            with pytest.raises(APIError, match="invalid json"):
                client.write_policy("a", ["["])


@pytest.mark.parametrize("unknown", [Answer(404, b"404 page not found\n", "text/plain"), Answer(501, b"")])
def test_a_server_of_2022_has_other_paths(tmp_path: Path, unknown: Answer) -> None:
    served = ("/v1/policy/assign/", "/v1/identity/delete/")
    with fake_server(tmp_path, lambda _, path: Answer() if path.startswith(served) else unknown) as server:
        assert calls_of(server, lambda client: client.assign_policy("a", OTHER)) == [
            f"POST /v1/identity/assign/a/{OTHER}",
            f"POST /v1/policy/assign/a {json.dumps({'identity': OTHER})}",
        ]
        assert calls_of(server, lambda client: client.forget_identity(OTHER)) == [
            f"DELETE /v1/identity/forget/{OTHER}",
            f"DELETE /v1/identity/delete/{OTHER}",
        ]


@pytest.mark.parametrize(
    "listed",
    [
        Answer(body=json.dumps({OTHER: "a", "x": "b"}).encode(), content_type="text/plain; charset=utf-8"),
        Answer(body=f'{{"identity":"{OTHER}","policy":"a"}}\n'.encode(), content_type="application/x-ndjson"),
    ],
)
def test_a_server_of_2021_tells_policies_in_its_list(tmp_path: Path, listed: Answer) -> None:
    unknown = Answer(404, b"404 page not found\n", "text/plain")

    def reply(method: str, path: str) -> Answer:
        return listed if path.startswith("/v1/identity/list/") else unknown

    with (
        fake_server(tmp_path, reply) as server,
        Client(server.endpoint, api_key=APP, ca_file=server.ca_file) as client,
    ):
        info = client.describe_identity(OTHER)
        assert (info.identity, info.is_admin, info.policy) == (OTHER, False, "a")
        with pytest.raises(IdentityNotFound, match="identity does not exist"):
            client.describe_identity("6" * 64)


def test_a_lost_answer_is_asked_for_again(tmp_path: Path) -> None:
    lost = iter([True, False] * 4)
    with fake_server(tmp_path, lambda *_: Answer(silent=next(lost))) as server:
        for call in EACH:
            first, second = calls_of(server, call)
            assert first == second


def test_being_off_is_a_kind_of_not_being_served() -> None:
    assert issubclass(RunTimePoliciesOff, NotServed)
