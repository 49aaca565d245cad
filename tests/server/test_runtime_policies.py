"""Policies and assignments that are written through the API: the rules, what they outlive, and many writers at once."""

import asyncio
import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keswick.client import APIError, AsyncClient, KeyNotFound, NotAllowed
from keswick.identity import APIKey
from keswick.server.routes import ROUTES
from support.api import Caller, new_pair
from support.certificates import Pair
from support.server import RunningServer, start_server

OF_2021: dict[str, Any] = {"compatibility": "2021", "tls": {"auth": "off"}}
REFUSED = (403, "prohibited by policy")


@dataclass
class Cast:
    """A running server, its admin, a `writer` who may write policies whose names begin with `team-`, and others."""

    server: RunningServer
    folder: Path
    config: dict[str, Any]
    pairs: dict[str, Pair]

    def __getattr__(self, name: str) -> Caller:
        return Caller(self.server.port, self.pairs[name], self.folder)


def cast_in(folder: Path, **config: Any) -> tuple[dict[str, Any], dict[str, Pair]]:
    pairs = {name: new_pair() for name in ("admin", "writer", "app", "other")}
    identity = {name: Caller(0, pair, folder).identity for name, pair in pairs.items()}
    allow = ["/v1/policy/write/team-*", "/v1/policy/assign/team-*", "/v1/policy/read/*", "/v1/policy/delete/team-*"]
    allow += ["/v1/identity/assign/team-*/*", "/v1/identity/forget/*"]
    whole: dict[str, Any] = {
        "admin": {"identity": identity["admin"]},
        "policy": {"writers": {"allow": allow, "identities": [identity["writer"]]}},
        **config,
    }
    return whole, pairs


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    folder = tmp_path_factory.mktemp("runtime")
    config, pairs = cast_in(folder, **OF_2021)
    with start_server(folder, **config) as server:
        yield Cast(server, folder, config, pairs)


# --- the rules ---


def test_a_writer_may_write_what_its_policy_allows_and_no_more(cast: Cast) -> None:
    assert cast.writer.call("POST", "/v1/policy/write/team-a", {"paths": ["/v1/key/create/a-*"]}).status == 200
    for caller, path in ((cast.writer, "/v1/policy/write/elsewhere"), (cast.other, "/v1/policy/write/team-a")):
        answer = caller.call("POST", path, {"paths": ["/*"]})
        assert (answer.status, answer.message) == REFUSED
    assert cast.admin.call("GET", "/v1/policy/read/team-a").json == {"paths": ["/v1/key/create/a-*"]}


def test_what_was_written_decides_at_once_and_globs_stop_at_a_slash(cast: Cast) -> None:
    cast.admin.call("POST", "/v1/policy/write/decides", {"paths": ["/v1/key/create/*", "/v1/*"]})
    assert cast.admin.call("POST", f"/v1/identity/assign/decides/{cast.app.identity}").status == 200
    assert cast.app.call("POST", "/v1/key/create/decided").status == 200
    assert cast.app.call("GET", "/v1/policy/list/x").status == 403
    cast.admin.call("POST", "/v1/policy/write/decides", {"allow": ["/v1/key/*/*"], "deny": ["/v1/key/delete/*"]})
    assert cast.app.call("POST", "/v1/key/generate/decided", {}).status == 200
    assert cast.app.call("DELETE", "/v1/key/delete/decided").status == 403


def test_nobody_assigns_a_policy_to_themselves(cast: Cast) -> None:
    cast.admin.call("POST", "/v1/policy/write/team-self", {"paths": ["/v1/*"]})
    for path, body in (
        (f"/v1/identity/assign/team-self/{cast.writer.identity}", None),
        ("/v1/policy/assign/team-self", {"identity": cast.writer.identity}),
    ):
        answer = cast.writer.call("POST", path, body)
        assert (answer.status, answer.message) == (403, "identity cannot assign policy to itself")


def test_the_admin_has_no_policy_and_keeps_none(cast: Cast) -> None:
    root = cast.admin.identity
    cast.admin.call("POST", "/v1/policy/write/team-root", {"paths": []})
    for caller in (cast.admin, cast.writer):
        for method, path in (
            ("POST", f"/v1/identity/assign/team-root/{root}"),
            ("DELETE", f"/v1/identity/forget/{root}"),
        ):
            answer = caller.call(method, path)
            assert (answer.status, answer.message) == (400, "identity is root")
    assert cast.admin.call("GET", "/v1/metrics").status == 200


def test_only_a_policy_that_is_there_can_be_assigned(cast: Cast) -> None:
    for path, body in (
        (f"/v1/identity/assign/team-none/{cast.app.identity}", None),
        ("/v1/policy/assign/team-none", {"identity": cast.app.identity}),
    ):
        answer = cast.admin.call("POST", path, body)
        assert (answer.status, answer.message) == (404, "policy does not exist")


def test_assigning_again_moves_an_identity(cast: Cast) -> None:
    for policy, path in (("first", "/v1/key/create/*"), ("second", "/v1/key/delete/*")):
        cast.admin.call("POST", f"/v1/policy/write/{policy}", {"paths": [path]})
        assert cast.admin.call("POST", f"/v1/identity/assign/{policy}/{cast.other.identity}").status == 200
    assert cast.other.call("POST", "/v1/key/create/x").status == 403
    assert cast.other.call("DELETE", "/v1/key/delete/x").status == 200
    listed = cast.admin.call("GET", f"/v1/identity/list/{cast.other.identity}").body
    assert json.loads(listed) == {"identity": cast.other.identity, "policy": "second"}


def test_deleting_a_policy_frees_its_identities(cast: Cast) -> None:
    cast.admin.call("POST", "/v1/policy/write/short", {"paths": ["/v1/key/delete/*"]})
    cast.admin.call("POST", f"/v1/identity/assign/short/{cast.app.identity}")
    assert cast.app.call("DELETE", "/v1/key/delete/x").status == 200
    assert cast.admin.call("DELETE", "/v1/policy/delete/short").status == 200
    assert cast.app.call("DELETE", "/v1/key/delete/x").status == 403
    cast.admin.call("POST", "/v1/policy/write/short", {"paths": ["/v1/key/delete/*"]})
    assert cast.app.call("DELETE", "/v1/key/delete/x").status == 403  # one of that name later is another one
    assert cast.admin.call("GET", f"/v1/identity/list/{cast.app.identity}").body == b""


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"paths": "/v1/*"}',
        b'{"paths": [1]}',
        b'{"paths": ["/v1/[a"]}',
        b'{"deny": ["/v1/x\\\\"]}',
        b'{"rules": []}',
        b'{"paths": [], "identities": []}',
        b'{"paths": [], "deny": []}',
        b'{"paths": []} {}',
        b'{"paths": ["/' + b"a" * (1 << 20) + b'"]}',
    ],
    ids=lambda body: body[:24].decode(),
)
def test_what_is_no_policy_changes_nothing(cast: Cast, body: bytes) -> None:
    cast.admin.call("POST", "/v1/policy/write/kept", {"paths": ["/v1/kept"]})
    answer = cast.admin.call("POST", "/v1/policy/write/kept", body)
    assert (answer.status, answer.message) == (400, "invalid json")
    assert cast.admin.call("GET", "/v1/policy/read/kept").json == {"paths": ["/v1/kept"]}


def test_rules_are_read_back_as_they_were_written(cast: Cast) -> None:
    bodies: list[dict[str, list[str]]] = [
        {"paths": ["/v1/b", "/v1/a", "/v1/b"]},
        {"allow": ["/v1/<&>"], "deny": []},
        {"allow": [], "deny": []},
    ]
    for body in bodies:
        assert cast.admin.call("POST", "/v1/policy/write/as-written", body).status == 200
        assert cast.admin.call("GET", "/v1/policy/read/as-written").json == body
    assert cast.admin.call("POST", "/v1/policy/write/as-written", {}).status == 200
    assert cast.admin.call("GET", "/v1/policy/read/as-written").json == {"allow": [], "deny": []}


def test_until_2022_any_word_was_a_name(cast: Cast) -> None:
    assert cast.admin.call("POST", "/v1/policy/write/my%20policy", {"paths": ["/v1/*"]}).status == 200
    assert cast.admin.call("POST", "/v1/identity/assign/my%20policy/some%20body").status == 200
    assert "my policy" in cast.admin.call("GET", "/v1/policy/list/my*").json
    assert json.loads(cast.admin.call("GET", "/v1/identity/list/some*").body)["policy"] == "my policy"


# --- what they outlive ---


def test_what_was_written_outlives_a_reload_and_goes_before_the_file(tmp_path: Path) -> None:
    config, pairs = cast_in(tmp_path, **OF_2021)
    with start_server(tmp_path, **config) as server:
        cast = Cast(server, tmp_path, config, pairs)
        cast.admin.call("POST", "/v1/policy/write/mine", {"paths": ["/v1/key/create/*"]})
        cast.admin.call("POST", f"/v1/identity/assign/mine/{cast.app.identity}")
        cast.admin.call("DELETE", f"/v1/identity/forget/{cast.writer.identity}")
        config["policy"]["mine"] = {"allow": ["/v1/metrics"], "identities": [cast.other.identity]}
        server.reload(**config)
        assert cast.app.call("POST", "/v1/key/create/x").status == 200
        assert cast.other.call("GET", "/v1/metrics").status == 403
        assert cast.writer.call("GET", "/v1/policy/read/mine").status == 403
        assert server.stop() == 0
    with start_server(tmp_path, **config) as server:
        cast = Cast(server, tmp_path, config, pairs)
        assert cast.app.call("POST", "/v1/key/create/y").status == 403
        assert cast.other.call("GET", "/v1/metrics").status == 200
        assert cast.writer.call("GET", "/v1/policy/read/mine").json == {"paths": ["/v1/metrics"]}


def test_the_old_story_in_the_words_of_2021(tmp_path: Path) -> None:
    config, pairs = cast_in(tmp_path, **OF_2021)
    with start_server(tmp_path, **config) as server:
        cast = Cast(server, tmp_path, config, pairs)
        root, app = cast.admin, cast.app
        assert root.call("POST", "/v1/key/create/my-key").status == 200
        made = root.call("POST", "/v1/key/generate/my-key", {}).json
        assert app.call("POST", "/v1/key/decrypt/my-key", {"ciphertext": made["ciphertext"]}).status == 403
        paths = ["/v1/key/generate/my-*", "/v1/key/decrypt/my-*"]
        assert root.call("POST", "/v1/policy/write/my-app", {"paths": paths}).status == 200
        assert root.call("GET", "/v1/policy/list/*").json == ["my-app", "writers"]
        assert root.call("POST", f"/v1/identity/assign/my-app/{app.identity}").status == 200
        opened = app.call("POST", "/v1/key/decrypt/my-key", {"ciphertext": made["ciphertext"]})
        assert opened.json == {"plaintext": made["plaintext"]}
        assert app.call("POST", "/v1/key/create/my-other").status == 403
        assert root.call("DELETE", f"/v1/identity/forget/{app.identity}").status == 200
        answer = app.call("POST", "/v1/key/decrypt/my-key", {"ciphertext": made["ciphertext"]})
        assert (answer.status, answer.message) == REFUSED
        assert server.stop() == 0
    with start_server(tmp_path, **config) as server:
        root = Cast(server, tmp_path, config, pairs).admin
        answer = root.call("GET", "/v1/policy/read/my-app")
        assert (answer.status, answer.message) == (404, "policy does not exist")
        assert root.call("POST", "/v1/key/decrypt/my-key", {"ciphertext": made["ciphertext"]}).status == 200


def test_every_write_is_on_record(tmp_path: Path) -> None:
    config, pairs = cast_in(tmp_path, runtime_policies="on", log={"audit": "on"})
    with start_server(tmp_path, **config) as server:
        cast = Cast(server, tmp_path, config, pairs)
        calls: list[tuple[Caller, str, str, Any, int]] = [
            (cast.writer, "POST", "/v1/policy/write/team-a", {"allow": []}, 200),
            (cast.other, "POST", "/v1/policy/write/team-a", {"allow": []}, 403),
            (cast.writer, "POST", f"/v1/identity/assign/team-a/{cast.app.identity}", None, 200),
            (cast.writer, "DELETE", f"/v1/identity/forget/{cast.app.identity}", None, 200),
            (cast.writer, "DELETE", "/v1/policy/delete/team-a", None, 200),
        ]
        for caller, method, path, body, status in calls:
            assert caller.call(method, path, body).status == status
        expected = [(path, caller.identity, status) for caller, _, path, _, status in calls]
        server.wait_for("/v1/policy/delete/team-a")
        events = [json.loads(line) for line in server.stdout.splitlines() if line.startswith("{")]
        assert [(e["request"]["path"], e["request"]["identity"], e["response"]["code"]) for e in events] == expected


def test_who_may_write_policies_cannot_fill_the_memory(cast: Cast) -> None:
    rule = "/v1/key/create/" + "x" * 1000
    assert cast.writer.call("POST", "/v1/policy/write/team-long", {"allow": [rule] * 100}).status == 200
    answer = cast.writer.call("POST", "/v1/policy/write/team-long", {"allow": [rule] * 100, "deny": [rule] * 100})
    assert (answer.status, answer.message) == (
        507,
        "too much is written at run time: policies and assignments belong in the configuration",
    )


# --- what a policy denies under one name of an operation, it denies under all ---


@pytest.mark.parametrize(
    ("deny", "method", "path", "body"),
    [
        ("/v1/key/decrypt/secret*", "PUT", "/v1/key/bulk/decrypt/secret-key", []),
        ("/v1/key/*/secret-key", "PUT", "/v1/key/bulk/decrypt/secret-key", []),
        ("/v1/log/audit", "GET", "/v1/log/audit/trace", None),
        ("/v1/log/error", "GET", "/v1/log/log/error/trace", None),
        ("/v1/log/error/trace", "GET", "/v1/log/error", None),
        ("/v1/identity/forget/*", "DELETE", "/v1/identity/delete/someone", None),
        ("/v1/identity/delete/*", "DELETE", "/v1/identity/forget/someone", None),
        ("/v1/identity/assign/*/*", "PUT", "/v1/policy/assign/writers", {"identity": "someone"}),
        ("/v1/policy/assign/writers", "PUT", "/v1/identity/assign/writers/someone", None),
    ],
)
def test_denied_under_one_name(closed: Cast, deny: str, method: str, path: str, body: Any) -> None:
    closed.admin.call("PUT", "/v1/policy/write/all", {"allow": ["*"], "deny": [deny]})
    assert closed.admin.call("PUT", "/v1/policy/assign/all", {"identity": closed.app.identity}).status == 200
    assert closed.app.call("GET", "/v1/metrics").status == 200
    answer = closed.app.call(method, path, body)
    assert (answer.status, answer.message) == (403, "not authorized: insufficient permissions")


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    folder = tmp_path_factory.mktemp("closed")
    config, pairs = cast_in(folder, runtime_policies="on")
    with start_server(folder, **config) as server:
        yield Cast(server, folder, config, pairs)


# --- off, as it is by default ---


def test_by_default_nothing_can_be_written(tmp_path: Path) -> None:
    config, pairs = cast_in(tmp_path)
    # What read-only grants of today look like.
    config["policy"]["writers"]["allow"] = ["/v1/policy/*", "/v1/identity/*"]
    optional = [route for route in ROUTES if route.is_optional]
    assert len(optional) == 6
    with start_server(tmp_path, **config) as server:
        cast = Cast(server, tmp_path, config, pairs)
        for caller in (cast.admin, cast.writer):
            for route in optional:
                for path in (f"{route.path}writers/{cast.app.identity}", f"{route.path}writers", route.path[:-1]):
                    answer = caller.call(route.method, path, {})
                    assert (answer.status, answer.body) == (404, b"404 page not found\n")
        served = {api["path"] for api in cast.admin.call("GET", "/v1/api").json}
        assert not served & {route.path for route in optional}
        assert cast.writer.call("GET", "/v1/policy/list/").json["names"] == ["writers"]
        assert "can be written" not in server.stdout


@pytest.mark.parametrize(
    ("dialect", "said", "on"), [("2025", "on", True), ("2021", "off", False), ("2023", None, True)]
)
def test_it_can_be_said_in_the_file(tmp_path: Path, dialect: str, said: str | None, on: bool) -> None:
    extra = {"runtime_policies": said} if said else {}
    config, pairs = cast_in(tmp_path, compatibility=dialect, tls={"auth": "off"}, **extra)
    with start_server(tmp_path, **config) as server:
        cast = Cast(server, tmp_path, config, pairs)
        status = cast.admin.call("PUT", "/v1/policy/write/p", {"allow": ["/v1/key/*"]}).status
        assert (status == 200) is on
        served = {api["path"] for api in cast.admin.call("GET", "/v1/api").json}
        assert ("/v1/policy/write/" in served) is on
        assert ("can be written" in server.stdout) is on


def test_switched_off_by_a_reload_what_was_written_is_forgotten(tmp_path: Path) -> None:
    config, pairs = cast_in(tmp_path, runtime_policies="on")
    with start_server(tmp_path, **config) as server:
        cast = Cast(server, tmp_path, config, pairs)
        cast.admin.call("PUT", "/v1/policy/write/more", {"allow": ["/v1/metrics"]})
        cast.admin.call("PUT", "/v1/policy/assign/more", {"identity": cast.app.identity})
        assert cast.app.call("GET", "/v1/metrics").status == 200
        server.reload(**config | {"runtime_policies": "off"})
        assert cast.app.call("GET", "/v1/metrics").status == 403
        assert cast.admin.call("GET", "/v1/policy/read/more").status == 404
        server.reload(**config)
        assert cast.app.call("GET", "/v1/metrics").status == 403


# --- many at once ---


class Writers:
    """A thousand tasks over several connections of both kinds, and what they know of the outcome."""

    COUNT = 1000

    def __init__(self, server: RunningServer, app: APIKey) -> None:
        self.server = server
        self.app = app
        self.lost: list[str] = []
        self.clients = [self.client(server.api_key, http2=http2) for http2 in (True, True, False, False)]

    def client(self, api_key: str, *, http2: bool) -> AsyncClient:
        return AsyncClient(
            self.server.endpoint, api_key=api_key, ca_file=self.server.ca_file, http2=http2, retries=0, timeout=60
        )

    async def writer(self, number: int) -> None:
        """Make a policy and assign it, and see it at once over other connections; a third is taken away again."""
        policy, identity, rule = f"p{number}", f"id{number}", f"/v1/key/describe/k{number}"
        first, second, third, _ = (self.clients[(number + offset) % 4] for offset in range(4))
        await first.write_policy(policy)
        await first.write_policy(policy, [rule])
        await second.assign_policy(policy, identity)
        self.note((await second.read_policy(policy)).allow == (rule,), f"{policy} is not what was written")
        self.note([name async for name in third.list_identities(identity)] != [], f"{identity} is not assigned")
        if number % 3 == 1:
            await third.delete_policy(policy)
        if number % 3 == 2:
            await third.forget_identity(identity)

    async def decisions(self, done: asyncio.Event) -> int:
        """Grant and take away, again and again: the very next call, over another connection, is decided so."""
        rounds = 0
        async with (
            self.client(self.server.api_key, http2=True) as admin,
            self.client(self.app.text, http2=False) as app,
        ):
            while not done.is_set():
                for policy, outcome in (("yes", KeyNotFound), ("no", NotAllowed)):
                    await admin.assign_policy(policy, self.app.identity)
                    self.note(await self.refusal(app) is outcome, f"the decision of {policy} is wrong")
                rounds += 1
        return rounds

    async def unchanged(self, done: asyncio.Event) -> int:
        """Who has no policy is refused all the time, and the admin never."""
        rounds = 0
        async with (
            self.client(APIKey.generate().text, http2=True) as stranger,
            self.client(self.server.api_key, http2=True) as admin,
        ):
            while not done.is_set():
                for client, outcome in ((stranger, NotAllowed), (admin, KeyNotFound)):
                    self.note(await self.refusal(client) is outcome, "an unchanged decision was wrong")
                rounds += 1
        return rounds

    async def refusal(self, client: AsyncClient) -> type[APIError]:
        try:
            await client.describe_key("k")
        except APIError as error:
            return type(error)
        raise AssertionError("there is no such key")

    async def reloads(self, done: asyncio.Event) -> int:
        rounds = 0
        while not done.is_set():
            self.server.process.send_signal(signal.SIGHUP)
            rounds += 1
            await asyncio.to_thread(self.server.wait_for, "SIGHUP signal completed", count=rounds)
        return rounds

    def note(self, well: bool, problem: str) -> None:
        if not well:
            self.lost.append(problem)

    async def run(self) -> list[int]:
        """How often each of the tasks beside the writers came round."""
        await self.clients[0].write_policy("yes", ["/v1/key/describe/*"])
        await self.clients[0].write_policy("no")
        done = asyncio.Event()
        beside = [asyncio.create_task(task(done)) for task in (self.decisions, self.unchanged, self.reloads)]
        try:
            await asyncio.gather(*(self.writer(number) for number in range(self.COUNT)))
        finally:
            done.set()
            rounds = await asyncio.gather(*beside)
        return rounds

    async def left(self) -> tuple[set[str], set[str]]:
        policies = {name async for name in self.clients[0].list_policies("p")}
        identities = {name async for name in self.clients[0].list_identities("id")}
        for client in self.clients:
            await client.close()
        return policies, identities


@pytest.mark.parametrize("dialect", ["2021", "2025"])
def test_a_thousand_writers_lose_nothing_while_the_configuration_is_reloaded(tmp_path: Path, dialect: str) -> None:
    async def story() -> None:
        writers = Writers(server, APIKey.generate())
        rounds = await writers.run()
        assert not writers.lost, writers.lost[:10]
        assert min(rounds) >= 1
        policies, identities = await writers.left()
        numbers = range(Writers.COUNT)
        assert policies == {f"p{number}" for number in numbers if number % 3 != 1}
        assert identities == {f"id{number}" for number in numbers if number % 3 == 0}

    with start_server(tmp_path, compatibility=dialect, runtime_policies="on", tls={"auth": "off"}) as server:
        asyncio.run(story())
