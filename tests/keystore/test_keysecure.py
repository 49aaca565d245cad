import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from keswick.keystore import (
    KeyExists,
    KeyNotFound,
    KeyStoreError,
    KeyStoreUnreachable,
    NotAKey,
    http,
    keysecure,
    renewal,
)
from keswick.keystore.keysecure import KeySecureStore
from keswick.keystore.memory import MemoryStore
from keswick.migration import Migration
from support.certificates import make
from support.fake_keysecure import FakeKeySecure
from support.key_stores import closing_all, use
from support.rest_service import Reply, Request
from support.server import start_server
from support.store_page import shown_keystore
from support.transport import wait_until

VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'
SECRETS = "/api/v1/vault/secrets"
LOGIN = "/api/v1/auth/tokens"


@pytest.fixture(autouse=True)
def tries_that_follow_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "pause_seconds", lambda: 0.01)


@pytest.fixture
def service() -> Iterator[FakeKeySecure]:
    with FakeKeySecure() as service:
        yield service


@pytest.fixture
def settings(service: FakeKeySecure) -> dict[str, str]:
    return {"endpoint": service.endpoint, "credentials.token": service.new_user()}


Open = Callable[[dict[str, str]], KeySecureStore]


@pytest.fixture
def open_store() -> Iterator[Open]:
    with closing_all(KeySecureStore) as open_store:
        yield open_store


@pytest.fixture
def store(settings: dict[str, str], open_store: Open) -> KeySecureStore:
    return open_store(settings)


def threads_that_log_in() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "gemalto.keysecure" in thread.name]


# --- requests ---


def test_the_requests_are_those_that_the_original_makes(service: FakeKeySecure, store: KeySecureStore) -> None:
    assert store.description == f"Gemalto KeySecure: {service.endpoint}"
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    assert list(store.list("")) == ["key"]
    store.delete("key")
    login, create, export, listing, look, delete = service.requests
    token = next(iter(service.refresh_tokens))
    assert (login.method, login.target) == ("POST", LOGIN)
    assert login.json == {"grant_type": "refresh_token", "refresh_token": token, "domain": ""}
    assert "Authorization" not in login.headers
    assert (create.method, create.target) == ("POST", SECRETS)
    assert create.json == {"dataType": "seed", "material": VALUE.decode(), "name": "key"}
    assert create.headers["Content-Type"] == "application/json"
    assert create.headers["Content-Length"] == str(len(create.body))
    assert create.headers["Authorization"].startswith("Bearer ")
    assert (export.method, export.target, export.body) == ("POST", f"{SECRETS}/key/export?type=name", b"")
    assert (listing.method, listing.target) == ("GET", f"{SECRETS}?limit=200&skip=0")
    assert (look.method, look.target) == (export.method, export.target)
    assert (delete.method, delete.target) == ("DELETE", f"{SECRETS}/key?type=name")


def test_a_secret_that_the_original_made_is_a_key(service: FakeKeySecure, store: KeySecureStore) -> None:
    service.domains[""].secrets["old"] = {"id": "7", "name": "old", "material": VALUE.decode()}
    assert store.get("old") == VALUE
    store.create("new", VALUE)
    assert service.domains[""].secrets["new"]["material"] == VALUE.decode()


def test_the_domain_is_that_of_the_settings(service: FakeKeySecure, settings: dict[str, str], open_store: Open) -> None:
    settings |= {"credentials.token": service.new_user("mine"), "credentials.domain": "mine"}
    open_store(settings).create("key", VALUE)
    assert list(service.domains["mine"].secrets) == ["key"]


@pytest.mark.parametrize("written", ["{}/", " {} ", "{}// "])
def test_slashes_and_spaces_around_the_endpoint_do_not_matter(
    service: FakeKeySecure, settings: dict[str, str], open_store: Open, written: str
) -> None:
    store = open_store({**settings, "endpoint": written.format(service.endpoint)})
    assert store.status() > 0
    assert store.description == f"Gemalto KeySecure: {service.endpoint}"
    assert service.requests[0].target == LOGIN


@pytest.mark.parametrize("endpoint", ["keysecure.example.com", "https://", "https://a b", "https://host:many"])
def test_an_endpoint_that_is_none_is_told(settings: dict[str, str], endpoint: str) -> None:
    with pytest.raises(KeyStoreError, match=r"is no URL: write it as https://HOST:PORT"):
        keysecure.open({**settings, "endpoint": endpoint})


@pytest.mark.parametrize("name", ["my key.v1", "schlüssel", "a?b#c%2e", "..."])
def test_old_names_are_escaped(service: FakeKeySecure, store: KeySecureStore, name: str) -> None:
    store.create(name, VALUE)
    assert store.get(name) == VALUE
    assert list(store.list("")) == [name]
    store.delete(name)
    with pytest.raises(KeyNotFound):
        store.delete(name)


def test_a_value_that_is_no_text_cannot_be_kept(service: FakeKeySecure, store: KeySecureStore) -> None:
    with pytest.raises(KeyStoreError, match="is no text"):
        store.create("key", b"\xff")
    assert service.domains[""].secrets == {}


# --- the token ---


def test_wrong_credentials_stop_the_start(service: FakeKeySecure, settings: dict[str, str]) -> None:
    for wrong in ({"credentials.token": "hush"}, {"credentials.domain": "another"}):
        with pytest.raises(KeyStoreError, match=r"does not take 'credentials\.token'") as told:
            keysecure.open({**settings, **wrong})
        assert not isinstance(told.value, KeyStoreUnreachable)
        assert "hush" not in str(told.value)
        assert settings["credentials.token"] not in str(told.value)
    assert not threads_that_log_in()


def test_a_server_that_is_away_stops_the_start(service: FakeKeySecure, settings: dict[str, str]) -> None:
    service.stop()
    with pytest.raises(KeyStoreUnreachable, match="cannot be reached"):
        keysecure.open(settings)
    service.start()


@pytest.mark.parametrize(
    "answer",
    [
        {"jwt": "a", "duration": 300, "token_type": "Basic"},
        {"jwt": "", "duration": 300, "token_type": "Bearer"},
        {"jwt": "a\r\nHost: b", "duration": 300, "token_type": "Bearer"},
        {"jwt": "ü", "duration": 300, "token_type": "Bearer"},
        {"jwt": ["a"], "duration": 300, "token_type": "Bearer"},
        {"jwt": "a", "duration": 0, "token_type": "Bearer"},
        {"jwt": "a", "duration": -1, "token_type": "Bearer"},
        {"jwt": "a", "duration": "300", "token_type": "Bearer"},
        {"jwt": "a", "duration": float("nan"), "token_type": "Bearer"},
        {"duration": 300, "token_type": "Bearer"},
        [],
        b"<html>welcome</html>",
    ],
)
def test_a_login_without_a_usable_token_stops_the_start(
    service: FakeKeySecure, settings: dict[str, str], answer: Any
) -> None:
    with service.instead(lambda request: Reply(200, answer)), pytest.raises(KeyStoreError, match="usable token"):
        keysecure.open(settings)


def test_a_login_that_fails_otherwise_says_what_the_server_says_but_no_secret(
    service: FakeKeySecure, settings: dict[str, str]
) -> None:
    with (
        service.instead(lambda request: Reply(400, {"code": 3, "codeDesc": "no such grant"})),
        pytest.raises(KeyStoreError, match="400 Bad Request: no such grant"),
    ):
        keysecure.open(settings)
    with (
        service.instead(lambda request: Reply(400, request.body, "text/plain")),
        pytest.raises(KeyStoreError, match=r"400 Bad Request$"),
    ):
        keysecure.open(settings)


def test_a_token_that_ended_is_replaced_and_the_call_repeated(service: FakeKeySecure, store: KeySecureStore) -> None:
    store.create("key", VALUE)
    service.forget_tokens()
    assert store.get("key") == VALUE
    assert len(service.seen("POST", LOGIN)) == 2
    assert len(service.seen("POST", "/export")) == 2


def test_many_calls_with_a_token_that_ended_log_in_once(service: FakeKeySecure, store: KeySecureStore) -> None:
    store.create("key", VALUE)
    service.forget_tokens()
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(store.get, ["key"] * 32)) == {VALUE}
    assert len(service.seen("POST", LOGIN)) == 2


def test_a_token_that_is_refused_again_is_an_error(service: FakeKeySecure, store: KeySecureStore) -> None:
    def refuse(request: Request) -> Reply | None:
        return None if request.target == LOGIN else Reply(401, {"code": 5, "codeDesc": "no"})

    with service.instead(refuse), pytest.raises(KeyStoreError, match="refuses a token that it has just given"):
        store.get("key")
    assert len(service.requests) == 4


def test_credentials_that_were_revoked_are_told_and_not_tried_by_every_call(
    service: FakeKeySecure, store: KeySecureStore
) -> None:
    service.refresh_tokens.clear()
    service.forget_tokens()
    for call in (store.status, lambda: store.get("key"), lambda: store.create("key", VALUE)):
        with pytest.raises(KeyStoreError, match=r"does not take 'credentials\.token'"):
            call()
    assert len(service.seen("POST", LOGIN)) == 2


@pytest.fixture
def short_lives(service: FakeKeySecure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are renewed ten times a second, and so are failures."""
    monkeypatch.setattr(renewal, "SHORTEST_LIFE", 0.01)
    monkeypatch.setattr(renewal, "RETRY_SECONDS", 0.02)
    service.duration = 0.2


@pytest.mark.usefixtures("short_lives")
def test_the_token_is_renewed_in_the_background(
    service: FakeKeySecure, settings: dict[str, str], open_store: Open
) -> None:
    store = open_store(settings)
    wait_until(lambda: len(service.seen("POST", LOGIN)) >= 4)
    service.duration = 300
    store.create("key", VALUE)


@pytest.mark.usefixtures("short_lives")
def test_the_renewal_goes_on_after_failures(service: FakeKeySecure, settings: dict[str, str], open_store: Open) -> None:
    store = open_store(settings)
    failures = [Reply(500), Reply(401), Reply(200, b"<html>"), Reply(200, {"jwt": 7}), Reply(503)]
    with service.instead(lambda request: failures[len(service.requests) % len(failures)]):
        wait_until(lambda: len(service.seen("POST", LOGIN)) > 20)
    service.restart()
    before = len(service.seen("POST", LOGIN))
    wait_until(lambda: len(service.seen("POST", LOGIN)) > before + 2)
    service.duration = 300
    store.create("key", VALUE)


def test_close_ends_the_renewal(service: FakeKeySecure, store: KeySecureStore) -> None:
    assert len(threads_that_log_in()) == 1
    store.close()
    store.close()
    wait_until(lambda: not threads_that_log_in())


def test_a_restart_of_the_server_is_an_outage_and_no_more(service: FakeKeySecure, store: KeySecureStore) -> None:
    store.create("key", VALUE)
    service.stop()
    with pytest.raises(KeyStoreUnreachable):
        store.get("key")
    service.forget_tokens()
    service.start()
    assert store.get("key") == VALUE
    service.restart()
    assert store.get("key") == VALUE


# --- refusals ---


@pytest.mark.parametrize(
    ("right", "call"),
    [
        ("create", lambda store: store.create("new", VALUE)),
        ("list", lambda store: store.list("")),
        ("list", lambda store: store.status()),
    ],
)
def test_a_right_that_is_missing_is_named(
    service: FakeKeySecure, store: KeySecureStore, right: str, call: Callable[[KeySecureStore], object]
) -> None:
    service.domains[""].denied.add(right)
    with pytest.raises(KeyStoreError, match=rf"lacks the right to {right} secrets") as told:
        call(store)
    assert not isinstance(told.value, KeyStoreUnreachable)
    assert len(service.seen("POST", LOGIN)) == 1


def test_what_may_not_be_exported_looks_as_if_it_were_not_there(service: FakeKeySecure, store: KeySecureStore) -> None:
    store.create("key", VALUE)
    service.domains[""].denied.add("export")
    with pytest.raises(KeyNotFound):
        store.get("key")
    with pytest.raises(KeyNotFound):
        store.delete("key")
    with pytest.raises(KeyExists):
        store.create("key", VALUE)


def test_what_may_not_be_deleted_is_told(service: FakeKeySecure, store: KeySecureStore) -> None:
    store.create("key", VALUE)
    service.domains[""].denied.add("delete")
    with pytest.raises(KeyStoreError, match=r"'key', which is there: .* lacks the right to delete it"):
        store.delete("key")
    with pytest.raises(KeyNotFound):
        store.delete("another")
    assert store.get("key") == VALUE


def test_a_key_that_somebody_else_deletes_at_that_moment_is_not_found(
    service: FakeKeySecure, store: KeySecureStore
) -> None:
    store.create("key", VALUE)

    def delete_before(request: Request) -> Reply | None:
        if request.method == "DELETE":
            service.domains[""].secrets.clear()
        return None

    with service.instead(delete_before), pytest.raises(KeyNotFound):
        store.delete("key")


@pytest.mark.parametrize("status", [400, 402, 422, 429, 507])
def test_what_the_server_says_is_passed_on_unless_it_is_the_value(
    service: FakeKeySecure, store: KeySecureStore, status: int
) -> None:
    with (
        service.instead(lambda request: Reply(status, {"code": 9, "codeDesc": "NCERRQuota: 500\nsecrets at most"})),
        pytest.raises(KeyStoreError, match="NCERRQuota: 500 secrets at most"),
    ):
        store.create("key", VALUE)
    with (
        service.instead(lambda request: Reply(status, {"codeDesc": f"bad material {VALUE.decode()}"})),
        pytest.raises(KeyStoreError) as told,
    ):
        store.create("key", VALUE)
    assert "8f58" not in str(told.value)


# --- answers that are lost ---


def test_a_create_whose_answer_was_lost_has_worked(service: FakeKeySecure, store: KeySecureStore) -> None:
    with service.losing("POST", SECRETS):
        store.create("key", VALUE)
    assert store.get("key") == VALUE


def test_a_create_whose_answer_was_lost_does_not_take_over_the_key_of_another(
    service: FakeKeySecure, store: KeySecureStore
) -> None:
    store.create("key", b"another")
    with service.losing("POST", SECRETS), pytest.raises(KeyExists):
        store.create("key", VALUE)
    service.domains[""].denied.add("export")
    with service.losing("POST", SECRETS), pytest.raises(KeyExists):
        store.create("key", VALUE)


def test_a_create_is_known_as_lost_after_another_login_too(service: FakeKeySecure, store: KeySecureStore) -> None:
    with service.losing("POST", SECRETS, then=service.forget_tokens):
        store.create("key", VALUE)
    assert len(service.seen("POST", LOGIN)) == 2


def test_a_delete_whose_answer_was_lost_has_worked(service: FakeKeySecure, store: KeySecureStore) -> None:
    store.create("key", VALUE)
    with service.losing("DELETE"):
        store.delete("key")
    assert service.domains[""].secrets == {}


def test_a_delete_that_was_lost_and_is_not_allowed_has_not_worked(
    service: FakeKeySecure, store: KeySecureStore
) -> None:
    """The second answer is 404, as if the first deletion had worked."""
    store.create("key", VALUE)
    service.domains[""].denied.add("delete")
    with service.losing("DELETE"), pytest.raises(KeyStoreError, match="lacks the right to delete it"):
        store.delete("key")
    assert store.get("key") == VALUE


# --- lists and foreign secrets ---


def fill(service: FakeKeySecure, *names: str) -> None:
    for name in names:
        service.domains[""].secrets[name] = {"id": f"id of {name}", "name": name, "material": "value"}


def test_a_list_of_several_pages_leaves_out_what_is_no_key(service: FakeKeySecure, store: KeySecureStore) -> None:
    names = [f"key-{number:03}" for number in range(450)]
    fill(service, "folder/secret", *names, "", "a\\b", ".", "x" * 256, "other")
    assert sorted(store.list("key-")) == names
    assert sorted(store.list("")) == [*names, "other"]
    assert [request.target for request in service.seen("GET", SECRETS)[:3]] == [
        f"{SECRETS}?limit=200&skip={skip}" for skip in (0, 200, 400)
    ]


def test_secrets_without_a_name_and_several_versions_of_one_do_no_harm(
    service: FakeKeySecure, store: KeySecureStore
) -> None:
    resources = [{"id": "1", "name": "key"}, {"id": "2"}, {"id": "3", "name": None}, {"id": "4", "name": "key"}]
    with service.instead(lambda request: Reply(200, {"skip": 0, "total": 4, "resources": resources})):
        assert list(store.list("")) == ["key"]
    with service.instead(lambda request: Reply(200, {"skip": 0, "total": 0, "resources": None})):
        assert list(store.list("")) == []


def test_a_list_is_complete_though_secrets_are_deleted_meanwhile(service: FakeKeySecure, store: KeySecureStore) -> None:
    names = [f"key-{number:03}" for number in range(450)]
    fill(service, *names)

    def delete_one_before_the_second_page(request: Request) -> Reply | None:
        if request.target.endswith("skip=200"):
            service.domains[""].secrets.pop("key-000", None)
        return None

    with service.instead(delete_one_before_the_second_page):
        assert set(store.list("")) >= set(names[1:])


def test_a_list_ends_though_the_server_tells_of_more_than_there_are(
    service: FakeKeySecure, store: KeySecureStore
) -> None:
    def tell_more(request: Request) -> Reply:
        reply = service.handle(request)
        return Reply(200, {**reply.body, "total": 1000})

    fill(service, "key")
    with service.instead(tell_more):
        assert list(store.list("")) == ["key"]

    def repeat(request: Request) -> Reply:
        skip = int(request.query["skip"])
        return Reply(200, {"skip": skip, "total": skip + 1000, "resources": [{"id": "1", "name": "key"}]})

    with service.instead(repeat):
        assert list(store.list("")) == ["key"]


@pytest.mark.parametrize(
    "answer",
    [
        {"skip": 200, "total": 1, "resources": [{"name": "key"}]},
        {"skip": "0", "total": 1, "resources": [{"name": "key"}]},
        {"skip": 0, "resources": [{"name": "key"}]},
        {"skip": 0, "total": 1, "resources": ["key"]},
        {"skip": 0, "total": 1, "resources": "key"},
        {"skip": 0, "total": 1},
        [{"name": "key"}],
        b"",
    ],
)
def test_a_list_that_cannot_be_read_is_an_error(service: FakeKeySecure, store: KeySecureStore, answer: Any) -> None:
    for call in (lambda: store.list(""), store.status):
        with service.instead(lambda request: Reply(200, answer)), pytest.raises(KeyStoreError, match="no list of sec"):
            call()


@pytest.mark.parametrize("material", [None, 7, ["value"], "\ud800"])
def test_a_secret_without_text_is_no_key(service: FakeKeySecure, store: KeySecureStore, material: Any) -> None:
    service.domains[""].secrets["key"] = {"name": "key", "material": material}
    with pytest.raises(NotAKey, match="the secret 'key' is no key, for its material is no text: move it away"):
        store.get("key")


def test_an_answer_without_material_says_nothing_of_the_secret(service: FakeKeySecure, store: KeySecureStore) -> None:
    with service.instead(lambda request: Reply(200, {})), pytest.raises(KeyStoreError, match="without its mat") as told:
        store.get("key")
    assert not isinstance(told.value, NotAKey)


def test_what_may_not_be_read_is_not_taken_for_deleted_when_it_is_moved(
    service: FakeKeySecure, store: KeySecureStore
) -> None:
    store.create("key", VALUE)
    service.domains[""].denied.add("export")
    report = Migration(store, MemoryStore()).run()
    assert "lack the right" in report.failures["key"]
    assert report.foreign == {}


def test_a_secret_that_is_too_large_is_no_key(service: FakeKeySecure, store: KeySecureStore) -> None:
    service.domains[""].secrets["key"] = {"name": "key", "material": "x" * (2 << 20)}
    with pytest.raises(KeyStoreError, match="more than 2097152 bytes"):
        store.get("key")


# --- connections ---


def test_connections_are_used_again(service: FakeKeySecure, store: KeySecureStore) -> None:
    store.create("key", VALUE)
    for _ in range(20):
        store.get("key")
    assert service.connections == 1
    with ThreadPoolExecutor(48) as pool:
        assert set(pool.map(store.get, ["key"] * 200)) == {VALUE}
    assert service.connections <= 32


def test_nothing_secret_is_shown(settings: dict[str, str], store: KeySecureStore) -> None:
    assert settings["credentials.token"] not in f"{store!r} {vars(store)['_session']._token!r}"
    assert vars(store)["_session"]._token.text not in repr(vars(store)["_session"]._token)


def test_only_the_authorities_of_the_settings_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, another = (make("p256", name=name, ca=True) for name in ("authority", "another"))
    server = make("p256", issuer=authority, sans=["127.0.0.1"])
    trusted, other = (pair.write(tmp_path, name)[0] for pair, name in ((authority, "trusted"), (another, "other")))
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "authority.pem").write_bytes(authority.cert_pem)
    with FakeKeySecure(server) as service:
        settings = {"endpoint": service.endpoint, "credentials.token": service.new_user()}
        for ca in (trusted, folder):
            store = keysecure.open({**settings, "tls.ca": str(ca)})
            store.create(ca.name, VALUE)
            store.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        keysecure.open(settings).close()
        with pytest.raises(KeyStoreUnreachable, match=r"its certificate is not trusted .* set 'tls\.ca'"):
            keysecure.open({**settings, "tls.ca": str(other)})
        with pytest.raises(KeyStoreError, match=r"tls\.ca '.*absent' cannot be used"):
            keysecure.open({**settings, "tls.ca": str(tmp_path / "absent")})


# --- a whole server ---


def test_a_server_runs_with_what_the_page_shows(tmp_path: Path) -> None:
    pair = make("p256", sans=["127.0.0.1"])
    with FakeKeySecure(pair) as service:
        keystore = shown_keystore("keystore-keysecure.md")
        section = keystore["gemalto"]["keysecure"]
        domain = section["credentials"]["domain"]
        section["endpoint"] = service.endpoint
        section["tls"]["ca"] = str(pair.write(tmp_path, "ca")[0])
        environment = {"KEYSECURE_TOKEN": service.new_user(domain)}
        with start_server(tmp_path / "server", keystore=keystore, environment=environment) as server:
            assert f"Gemalto KeySecure: {service.endpoint}" in server.stdout
            use(server, midway=service.forget_tokens)
            assert list(service.domains[domain].secrets) == ["my-key"]
            assert environment["KEYSECURE_TOKEN"] not in json.dumps([server.stdout, server.stderr])
            assert server.stop() == 0
