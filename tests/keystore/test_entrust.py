import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from keswick.keystore import KeyExists, KeyNotFound, KeyStoreError, KeyStoreUnreachable, NotAKey, entrust, http, renewal
from keswick.keystore.entrust import EntrustStore
from support.certificates import make
from support.fake_entrust import Box, FakeEntrust
from support.key_stores import closing_all, use
from support.rest_service import Reply, Request
from support.server import start_server
from support.store_page import shown_keystore
from support.transport import wait_until

VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'
DATA = b64encode(VALUE).decode()


@pytest.fixture(autouse=True)
def tries_that_follow_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "pause_seconds", lambda: 0.01)


@pytest.fixture
def service() -> Iterator[FakeEntrust]:
    with FakeEntrust() as service:
        yield service


def settings_of(service: FakeEntrust) -> dict[str, str]:
    return {
        "endpoint": service.endpoint,
        "vault_id": service.vault,
        "box_id": service.new_box(),
        "credentials.username": service.username,
        "credentials.password": service.password,
    }


@pytest.fixture
def settings(service: FakeEntrust) -> dict[str, str]:
    return settings_of(service)


@pytest.fixture
def box(service: FakeEntrust, settings: dict[str, str]) -> Box:
    return service.boxes[settings["box_id"]]


Open = Callable[[dict[str, str]], EntrustStore]


@pytest.fixture
def open_store() -> Iterator[Open]:
    with closing_all(EntrustStore) as open_store:
        yield open_store


@pytest.fixture
def store(settings: dict[str, str], open_store: Open) -> EntrustStore:
    return open_store(settings)


def threads_that_log_in() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "entrust.keycontrol" in thread.name]


def logins(service: FakeEntrust) -> list[Request]:
    return service.seen("POST", f"/Login/{service.vault}/")


def renewals(service: FakeEntrust) -> list[Request]:
    return service.seen("POST", "/Renew/")


# --- requests ---


def test_the_requests_are_those_that_the_original_makes(
    service: FakeEntrust, settings: dict[str, str], store: EntrustStore
) -> None:
    assert store.description == f"Entrust KeyControl: {service.endpoint}"
    assert store.status() > 0
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    assert list(store.list("")) == ["key"]
    store.delete("key")
    box = {"box_id": settings["box_id"]}
    login, *others = service.requests
    assert (login.method, login.target) == ("POST", f"/vault/1.0/Login/{service.vault}/")
    assert login.json == {"username": service.username, "password": service.password}
    assert login.headers["Content-Type"] == "application/json"
    assert "X-Vault-Auth" not in login.headers
    assert [(request.method, request.target.removeprefix("/vault/1.0"), request.json) for request in others] == [
        ("POST", "/GetBox/", box),
        ("POST", "/CreateSecret/", {**box, "name": "key", "secret_data": DATA}),
        ("POST", "/CheckoutSecret/", {**box, "secret_id": "key"}),  # what was created is read back
        ("POST", "/CheckoutSecret/", {**box, "secret_id": "key"}),
        ("POST", "/ListSecretIds/", {**box, "max_items": 256}),
        ("POST", "/DeleteSecret/", {**box, "secret_id": "key"}),
        ("POST", "/CheckoutSecret/", {**box, "secret_id": "key"}),  # what was deleted is looked for
    ]
    for request in others:
        assert request.headers["X-Vault-Auth"] in service._tokens
        assert request.headers["Content-Length"] == str(len(request.body))


def test_a_secret_that_the_original_made_is_a_key(box: Box, store: EntrustStore) -> None:
    box.secrets["old"] = DATA
    assert store.get("old") == VALUE
    store.create("new", VALUE)
    assert box.secrets["new"] == DATA


@pytest.mark.parametrize("written", ["{}/", " {} ", "{}// "])
def test_slashes_and_spaces_around_the_endpoint_do_not_matter(
    service: FakeEntrust, settings: dict[str, str], open_store: Open, written: str
) -> None:
    store = open_store({**settings, "endpoint": written.format(service.endpoint)})
    assert store.status() > 0
    assert store.description == f"Entrust KeyControl: {service.endpoint}"


# --- the token ---


@pytest.mark.parametrize("wrong", ["credentials.username", "credentials.password"])
def test_wrong_credentials_stop_the_start(service: FakeEntrust, settings: dict[str, str], wrong: str) -> None:
    with pytest.raises(
        KeyStoreError, match=r"does not take 'credentials\.username' and 'credentials\.password'"
    ) as told:
        entrust.open({**settings, wrong: "hush"})
    assert not isinstance(told.value, KeyStoreUnreachable)
    for secret in ("hush", service.password):
        assert secret not in str(told.value)
    assert not threads_that_log_in()


def test_an_unknown_vault_stops_the_start(settings: dict[str, str]) -> None:
    with pytest.raises(KeyStoreError, match=r"knows no vault 'a/\.\./b': look at 'vault_id'"):
        entrust.open({**settings, "vault_id": "a/../b"})


def test_a_server_that_is_away_stops_the_start(service: FakeEntrust, settings: dict[str, str]) -> None:
    service.stop()
    with pytest.raises(KeyStoreUnreachable, match="cannot be reached"):
        entrust.open(settings)
    service.start()


@pytest.mark.parametrize("answer", [{}, {"access_token": ""}, {"access_token": "a\nb"}, {"access_token": 7}, [], b"<"])
def test_a_login_without_a_usable_token_stops_the_start(
    service: FakeEntrust, settings: dict[str, str], answer: Any
) -> None:
    with (
        service.instead(lambda request: Reply(200, answer)),
        pytest.raises(KeyStoreError, match=r"usable token|no JSON object"),
    ):
        entrust.open(settings)


def test_a_login_that_fails_otherwise_says_what_the_server_says_but_no_secret(
    service: FakeEntrust, settings: dict[str, str]
) -> None:
    with (
        service.instead(lambda request: Reply(400, {"error": "the vault is in maintenance"})),
        pytest.raises(KeyStoreError, match="400 Bad Request: the vault is in maintenance"),
    ):
        entrust.open(settings)
    with (
        service.instead(lambda request: Reply(400, {"error": request.body.decode()})),
        pytest.raises(KeyStoreError, match=r"400 Bad Request$"),
    ):
        entrust.open(settings)


NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("2026-11-28T12:10:00Z", 600),
        ("2026-11-28T12:00:30.5Z", 30.5),
        ("2026-11-28T13:10:00.123456789+01:00", 600.123456789),
        ("2026-11-28T12:00:00Z", entrust.UNTOLD_LIFE),
        ("2020-01-01T00:00:00Z", entrust.UNTOLD_LIFE),
        ("tomorrow", entrust.UNTOLD_LIFE),
        (None, entrust.UNTOLD_LIFE),
        (1764331200, entrust.UNTOLD_LIFE),
    ],
)
def test_the_life_of_a_token_is_measured_by_the_clock_of_the_server(told: object, seconds: float) -> None:
    assert entrust._life(told, format_datetime(NOW, usegmt=True)) == pytest.approx(seconds)


def test_without_a_date_of_the_server_the_clock_of_this_machine_counts() -> None:
    end = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    assert entrust._life(end, None) == pytest.approx(3600, abs=30)
    assert entrust._life(end, "no date") == entrust.UNTOLD_LIFE


def test_a_token_that_ended_is_replaced_and_the_call_repeated(service: FakeEntrust, store: EntrustStore) -> None:
    store.create("key", VALUE)
    service.forget_tokens()
    assert store.get("key") == VALUE
    assert (len(logins(service)), len(renewals(service))) == (2, 0)


def test_many_calls_with_a_token_that_ended_log_in_once(service: FakeEntrust, store: EntrustStore) -> None:
    store.create("key", VALUE)
    service.forget_tokens()
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(store.get, ["key"] * 32)) == {VALUE}
    assert len(logins(service)) == 2


def test_a_password_that_was_changed_is_told_and_not_tried_by_every_call(
    service: FakeEntrust, store: EntrustStore
) -> None:
    service.password = "new"
    service.forget_tokens()
    for call in (store.status, lambda: store.get("key"), lambda: store.create("key", VALUE)):
        with pytest.raises(KeyStoreError, match=r"does not take 'credentials\.username' and 'credentials\.password'"):
            call()
    assert len(logins(service)) == 2


def test_a_token_that_is_refused_again_is_an_error(service: FakeEntrust, store: EntrustStore) -> None:
    def refuse(request: Request) -> Reply | None:
        return None if request in logins(service) else Reply(401, {"error": "no"})

    with service.instead(refuse), pytest.raises(KeyStoreError, match="refuses a token that it has just given"):
        store.get("key")
    assert len(service.requests) == 4


@pytest.fixture
def short_lives(service: FakeEntrust, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are renewed ten times a second, and so are failures."""
    monkeypatch.setattr(renewal, "SHORTEST_LIFE", 0.01)
    monkeypatch.setattr(renewal, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(entrust, "UNTOLD_LIFE", 0.2)
    service.tell_life = False


@pytest.mark.usefixtures("short_lives")
def test_the_token_is_renewed_in_the_background(
    service: FakeEntrust, settings: dict[str, str], open_store: Open
) -> None:
    store = open_store(settings)
    wait_until(lambda: len(renewals(service)) >= 3)
    store.create("key", VALUE)
    assert len(logins(service)) == 1
    first, second, *_ = renewals(service)
    assert (first.target, first.body) == ("/vault/1.0/Renew/", b"")
    assert first.headers["X-Vault-Auth"] != second.headers["X-Vault-Auth"]


@pytest.mark.usefixtures("short_lives")
def test_a_renewal_that_fails_is_a_login(service: FakeEntrust, settings: dict[str, str], open_store: Open) -> None:
    service.renewable = False
    open_store(settings)
    wait_until(lambda: len(logins(service)) >= 3)
    assert len(renewals(service)) >= 2


@pytest.mark.usefixtures("short_lives")
def test_the_renewal_never_stops(service: FakeEntrust, settings: dict[str, str], open_store: Open) -> None:
    store = open_store(settings)
    failures = [Reply(500), Reply(401), Reply(200, b"<html>"), Reply(200, {"access_token": 7}), Reply(503), Reply(404)]
    with service.instead(lambda request: failures[len(service.requests) % len(failures)]):
        wait_until(lambda: len(logins(service)) > 20)
    service.forget_tokens()
    service.restart()
    before = len(renewals(service))
    wait_until(lambda: len(renewals(service)) > before + 2)
    store.create("key", VALUE)


def test_the_end_of_a_token_that_is_told_counts(service: FakeEntrust, store: EntrustStore) -> None:
    assert store._session._token.seconds == pytest.approx(service.life, abs=30)


def test_close_ends_the_renewal(store: EntrustStore) -> None:
    assert len(threads_that_log_in()) == 1
    store.close()
    store.close()
    wait_until(lambda: not threads_that_log_in())


def test_a_restart_of_the_server_is_an_outage_and_no_more(service: FakeEntrust, store: EntrustStore) -> None:
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
    ("action", "said", "call"),
    [
        ("GetBox", "see the box", lambda store: store.status()),
        ("CreateSecret", "create secrets", lambda store: store.create("new", VALUE)),
        ("CheckoutSecret", "check out secrets", lambda store: store.get("key")),
        ("DeleteSecret", "delete secrets", lambda store: store.delete("key")),
        ("ListSecretIds", "list secrets", lambda store: store.list("")),
    ],
)
def test_a_right_that_is_missing_is_named(
    service: FakeEntrust, box: Box, store: EntrustStore, action: str, said: str, call: Callable[[EntrustStore], object]
) -> None:
    box.secrets["key"] = DATA
    box.denied.add(action)
    with pytest.raises(KeyStoreError, match=f"no policy lets the account of 'credentials.username' {said}") as told:
        call(store)
    assert not isinstance(told.value, KeyStoreUnreachable)
    assert len(logins(service)) == 1


def test_an_unknown_box_is_told(settings: dict[str, str], open_store: Open) -> None:
    store = open_store({**settings, "box_id": "nowhere"})
    for call in (
        store.status,
        lambda: store.get("key"),
        lambda: store.create("key", VALUE),
        lambda: store.delete("key"),
        lambda: store.list(""),
    ):
        with pytest.raises(KeyStoreError, match=r"Box not found \(is 'box_id', which is 'nowhere', right\?\)"):
            call()


@pytest.mark.parametrize("body", [{"error": "another thing"}, b"<html>", {"error": ["Secret not found"]}])
@pytest.mark.parametrize("status", [404, 409])
def test_only_the_exact_words_mean_that_a_key_is_there_or_not(
    service: FakeEntrust, store: EntrustStore, status: int, body: Any
) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.get("key"),
        lambda: store.create("key", VALUE),
        lambda: store.delete("key"),
    ]
    for call in calls:
        with service.instead(lambda request: Reply(status, body)), pytest.raises(KeyStoreError, match=str(status)):
            call()


@pytest.mark.parametrize("status", [400, 402, 429, 507])
def test_what_the_server_says_is_passed_on_unless_it_is_the_value(
    service: FakeEntrust, store: EntrustStore, status: int
) -> None:
    with (
        service.instead(lambda request: Reply(status, {"error": "the quota\nis used up"})),
        pytest.raises(KeyStoreError, match=f"{status} .*: the quota is used up"),
    ):
        store.create("key", VALUE)
    with (
        service.instead(lambda request: Reply(status, {"error": request.body.decode()})),
        pytest.raises(KeyStoreError) as told,
    ):
        store.create("key", VALUE)
    assert DATA not in str(told.value)


def test_a_success_that_is_none_is_told(service: FakeEntrust, box: Box, store: EntrustStore) -> None:
    """As by a proxy that answers everything."""

    def claim(request: Request) -> Reply | None:
        return Reply(200, {}) if request.target.endswith(("/CreateSecret/", "/DeleteSecret/")) else None

    with service.instead(claim):
        with pytest.raises(KeyStoreError, match="said that it created the secret 'key', but has it not"):
            store.create("key", VALUE)
        box.secrets["key"] = DATA
        with pytest.raises(KeyStoreError, match="said that it deleted the secret 'key', but still has it"):
            store.delete("key")


# --- answers that are lost ---


def test_a_create_whose_answer_was_lost_has_worked(service: FakeEntrust, store: EntrustStore) -> None:
    with service.losing("POST", "/CreateSecret/"):
        store.create("key", VALUE)
    assert store.get("key") == VALUE


def test_a_create_whose_answer_was_lost_does_not_take_over_the_key_of_another(
    service: FakeEntrust, store: EntrustStore
) -> None:
    store.create("key", b"another")
    with service.losing("POST", "/CreateSecret/"), pytest.raises(KeyExists):
        store.create("key", VALUE)
    assert store.get("key") == b"another"


def test_a_delete_whose_answer_was_lost_has_worked(service: FakeEntrust, box: Box, store: EntrustStore) -> None:
    store.create("key", VALUE)
    with service.losing("POST", "/DeleteSecret/"):
        store.delete("key")
    assert box.secrets == {}


# --- lists and foreign secrets ---


@pytest.mark.parametrize("count", [255, 256, 257, 600])
def test_a_list_of_several_pages_is_complete_and_holds_only_names(box: Box, store: EntrustStore, count: int) -> None:
    names = [f"key-{number:03}" for number in range(count)]
    box.secrets |= dict.fromkeys(["a", "folder/secret", "", ".", "x" * 256, *names, "z"], DATA)
    assert sorted(store.list("")) == ["a", *names, "z"]
    assert sorted(store.list("key-")) == names
    assert list(store.list("key-2550")) == []


def test_a_list_asks_for_the_page_that_it_was_told(service: FakeEntrust, box: Box, store: EntrustStore) -> None:
    box.secrets |= {f"key-{number:03}": DATA for number in range(300)}
    assert len(list(store.list(""))) == 300
    first, second = service.seen("POST", "/ListSecretIds/")
    assert "next_token" not in first.json
    assert second.json["next_token"]


@pytest.mark.parametrize(
    "answer",
    [
        {"Secrets": None},
        {"Secrets": []},
        {"Secrets": [{}, {"name": None}, {"name": ""}, "key", None], "next_token": None},
    ],
)
def test_a_list_may_hold_nothing(service: FakeEntrust, store: EntrustStore, answer: Any) -> None:
    with service.instead(lambda request: Reply(200, answer)):
        assert list(store.list("")) == []


@pytest.mark.parametrize("answer", [{}, {"Secrets": "key"}, {"Secrets": [], "next_token": 7}, {"Secrets": {}}, [], b""])
def test_a_list_that_cannot_be_read_is_an_error(service: FakeEntrust, store: EntrustStore, answer: Any) -> None:
    with (
        service.instead(lambda request: Reply(200, answer)),
        pytest.raises(KeyStoreError, match=r"no list of secrets|no JSON object"),
    ):
        store.list("")


def test_a_server_that_repeats_a_page_is_an_error(service: FakeEntrust, store: EntrustStore) -> None:
    with (
        service.instead(lambda request: Reply(200, {"Secrets": [{"name": "key"}], "next_token": "again"})),
        pytest.raises(KeyStoreError, match="again and again"),
    ):
        store.list("")


@pytest.mark.parametrize("data", [None, 7, ["a"], {}, "no base64", "8f5", b64encode(b"\xff\xfe").decode()])
def test_a_secret_without_text_is_no_key(box: Box, store: EntrustStore, data: Any) -> None:
    box.secrets["key"] = data
    with pytest.raises(NotAKey, match="the secret 'key' is no key, for its data is no text in base64"):
        store.get("key")


def test_an_answer_without_data_says_nothing_of_the_secret(service: FakeEntrust, store: EntrustStore) -> None:
    with service.instead(lambda request: Reply(200, {})), pytest.raises(KeyStoreError, match="without its dat") as told:
        store.get("key")
    assert not isinstance(told.value, NotAKey)


def test_a_key_that_is_not_there_is_not_found(store: EntrustStore) -> None:
    for call in (store.get, store.delete):
        with pytest.raises(KeyNotFound):
            call("key")


# --- connections ---


def test_connections_are_used_again(service: FakeEntrust, store: EntrustStore) -> None:
    store.create("key", VALUE)
    for _ in range(20):
        store.get("key")
    assert service.connections == 1
    with ThreadPoolExecutor(48) as pool:
        assert set(pool.map(store.get, ["key"] * 200)) == {VALUE}
    assert service.connections <= 32


def test_the_authority_of_the_settings_is_trusted_besides_those_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, another = (make("p256", name=name, ca=True) for name in ("authority", "another"))
    server = make("p256", issuer=authority, sans=["127.0.0.1"])
    trusted, other = (pair.write(tmp_path, name)[0] for pair, name in ((authority, "trusted"), (another, "other")))
    with FakeEntrust(server) as service:
        settings = settings_of(service)
        entrust.open({**settings, "tls.ca": str(trusted)}).close()
        for wrong in ({}, {"tls.ca": str(other)}):
            with pytest.raises(KeyStoreUnreachable, match=r"its certificate is not trusted .* set 'tls\.ca'"):
                entrust.open({**settings, **wrong})
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        for right in ({}, {"tls.ca": str(other)}):
            entrust.open({**settings, **right}).close()


# --- a whole server ---


def test_a_server_runs_with_what_the_page_shows(tmp_path: Path) -> None:
    pair = make("p256", sans=["127.0.0.1"])
    with FakeEntrust(pair) as service:
        keystore = shown_keystore("keystore-entrust.md")
        section = keystore["entrust"]["keycontrol"]
        section["endpoint"] = service.endpoint
        section["tls"]["ca"] = str(pair.write(tmp_path, "ca")[0])
        service.vault = section["vault_id"]
        service.boxes[section["box_id"]] = box = Box()
        environment = {"KEYCONTROL_USER": service.username, "KEYCONTROL_PASSWORD": service.password}
        with start_server(tmp_path / "server", keystore=keystore, environment=environment) as server:
            assert f"Entrust KeyControl: {service.endpoint}" in server.stdout
            use(server, midway=service.forget_tokens)
            assert list(box.secrets) == ["my-key"]
            assert service.password not in json.dumps([server.stdout, server.stderr])
            assert server.stop() == 0
