import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from keswick.keystore import KeyExists, KeyNotFound, KeyStoreError, KeyStoreUnreachable, NotAKey, fortanix, http
from keswick.keystore.fortanix import FortanixStore
from support.certificates import make
from support.fake_fortanix import Account, FakeFortanix
from support.key_stores import closing_all, use
from support.rest_service import Reply, Request
from support.server import start_server
from support.store_page import shown_keystore

VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'
TEXT = b64encode(VALUE).decode()
KEYS = "/crypto/v1/keys"


@pytest.fixture(autouse=True)
def tries_that_follow_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "pause_seconds", lambda: 0.01)


@pytest.fixture(params=[False, True], ids=["errors as text", "errors as JSON"])
def service(request: pytest.FixtureRequest) -> Iterator[FakeFortanix]:
    with FakeFortanix(json_errors=request.param) as service:
        yield service


@pytest.fixture
def settings(service: FakeFortanix) -> dict[str, str]:
    return {"endpoint": service.endpoint, "credentials.key": service.new_app()}


@pytest.fixture
def account(service: FakeFortanix, settings: dict[str, str]) -> Account:
    return service.accounts[settings["credentials.key"]]


Open = Callable[[dict[str, str]], FortanixStore]


@pytest.fixture
def open_store() -> Iterator[Open]:
    with closing_all(FortanixStore) as open_store:
        yield open_store


@pytest.fixture
def store(settings: dict[str, str], open_store: Open) -> FortanixStore:
    return open_store(settings)


def fill(account: Account, *names: str, **properties: Any) -> None:
    for name in names:
        account.sobjects[name] = {"kid": f"id of {name}", "name": name, "value": TEXT, "enabled": True, **properties}


# --- the start ---


def test_the_start_asks_for_health_logs_in_and_out(
    service: FakeFortanix, settings: dict[str, str], store: FortanixStore
) -> None:
    assert store.description == f"Fortanix SDKMS: {service.endpoint}"
    health, login, logout = service.requests
    assert (health.method, health.target) == ("GET", "/sys/v1/health")
    assert "Authorization" not in health.headers
    assert (login.method, login.target, login.body) == ("POST", "/sys/v1/session/auth", b"")
    assert login.headers["Authorization"] == f"Basic {settings['credentials.key']}"
    assert (logout.method, logout.target, logout.body) == ("POST", "/sys/v1/session/terminate", b"")
    assert logout.headers["Authorization"].startswith("Bearer ")
    assert service.sessions == {}


@pytest.mark.parametrize("written", ["{}/", " {} ", "{}// "])
def test_slashes_and_spaces_around_endpoint_and_key_do_not_matter(
    service: FakeFortanix, settings: dict[str, str], open_store: Open, written: str
) -> None:
    key = f" {settings['credentials.key']}\n"
    store = open_store({"endpoint": written.format(service.endpoint), "credentials.key": key})
    assert store.status() > 0
    assert store.description == f"Fortanix SDKMS: {service.endpoint}"
    assert service.requests[0].target == "/sys/v1/health"


@pytest.mark.parametrize("key", ["bm9ib2R5Omh1c2g=", "hush hush"])
def test_a_wrong_api_key_stops_the_start(settings: dict[str, str], key: str) -> None:
    with pytest.raises(KeyStoreError, match=r"does not take 'credentials\.key'") as told:
        fortanix.open({**settings, "credentials.key": key})
    assert key not in str(told.value)


@pytest.mark.parametrize("key", ["a\nb", "schlüssel"])
def test_what_cannot_be_an_api_key_stops_the_start(service: FakeFortanix, settings: dict[str, str], key: str) -> None:
    with pytest.raises(KeyStoreError, match=r"'credentials\.key' is no API key") as told:
        fortanix.open({**settings, "credentials.key": key})
    assert key not in str(told.value)
    assert service.requests == []


def test_a_service_that_is_not_well_stops_the_start(service: FakeFortanix, settings: dict[str, str]) -> None:
    service.healthy = False
    with pytest.raises(KeyStoreUnreachable, match="503"):
        fortanix.open(settings)
    service.stop()
    with pytest.raises(KeyStoreUnreachable, match="cannot be reached"):
        fortanix.open(settings)
    service.start()


@pytest.mark.parametrize(
    ("call", "reply", "said"),
    [
        ("health", Reply(200, b"<html>welcome</html>"), "200 OK"),
        ("auth", Reply(204), "204 No Content"),
        ("auth", Reply(200, []), "no JSON object"),
        ("auth", Reply(200, {}), "without a token"),
        ("auth", Reply(200, {"access_token": "a\r\nHost: b"}), "without a token"),
        ("auth", Reply(403, {"message": "no"}), "lacks the right to log in"),
        ("terminate", Reply(200, {}), "200 OK"),
    ],
)
def test_any_other_answer_stops_the_start(
    service: FakeFortanix, settings: dict[str, str], call: str, reply: Reply, said: str
) -> None:
    def answer(request: Request) -> Reply | None:
        return reply if request.target.endswith(call) else None

    with service.instead(answer), pytest.raises(KeyStoreError, match=said):
        fortanix.open(settings)


# --- requests ---


def test_the_requests_are_those_that_the_original_makes(
    service: FakeFortanix, settings: dict[str, str], account: Account, store: FortanixStore
) -> None:
    service.requests.clear()
    store.create("key", VALUE)
    kid = account.sobjects["key"]["kid"]
    assert store.get("key") == VALUE
    assert list(store.list("")) == ["key"]
    assert list(store.list("key")) == ["key"]
    store.delete("key")
    create, export, first, last, first_with_prefix, _, look, delete = service.requests
    assert (create.method, create.target) == ("PUT", KEYS)
    assert create.json == {
        "obj_type": "OPAQUE",
        "name": "key",
        "key_ops": ["EXPORT", "APPMANAGEABLE"],
        "value": TEXT,
        "enabled": True,
    }
    assert create.headers["Content-Length"] == str(len(create.body))
    assert (export.method, export.target, export.json) == ("POST", f"{KEYS}/export", {"name": "key"})
    assert (first.method, first.target) == ("GET", f"{KEYS}?sort=name:asc&limit=100")
    assert (last.method, last.target) == ("GET", f"{KEYS}?sort=name:asc&limit=100&start=key")
    assert first_with_prefix.target == f"{KEYS}?sort=name:asc&limit=100&start=ke"
    assert (look.method, look.target) == (export.method, export.target)
    assert (delete.method, delete.target) == ("DELETE", f"{KEYS}/{kid}")
    for request in service.requests:
        assert request.headers["Authorization"] == f"Basic {settings['credentials.key']}"


def test_new_keys_are_in_the_group_of_the_settings(
    service: FakeFortanix, settings: dict[str, str], account: Account, open_store: Open
) -> None:
    account.groups.add("mine")
    open_store({**settings, "group_id": "mine"}).create("key", VALUE)
    assert account.sobjects["key"]["group_id"] == "mine"
    with pytest.raises(KeyStoreError, match="404 Not Found: group does not exist"):
        open_store({**settings, "group_id": "another"}).create("key", VALUE)


def test_an_object_that_the_original_made_is_a_key(account: Account, store: FortanixStore) -> None:
    fill(account, "old")
    assert store.get("old") == VALUE
    assert list(store.list("")) == ["old"]


@pytest.mark.parametrize("name", ["my key.v1", "schlüssel", "a?b#c%2e&limit=1", "..."])
def test_old_names_are_escaped(account: Account, store: FortanixStore, name: str) -> None:
    store.create(name, VALUE)
    store.create(f"{name}-another", VALUE)
    assert store.get(name) == VALUE
    assert sorted(store.list(name)) == [name, f"{name}-another"]
    store.delete(name)
    assert list(account.sobjects) == [f"{name}-another"]


# --- lists ---


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("count", [99, 100, 101, 198, 199, 350])
def test_a_list_of_several_pages_is_complete(
    service: FakeFortanix, account: Account, store: FortanixStore, inclusive: bool, count: int
) -> None:
    service.inclusive = inclusive
    names = [f"key-{number:03}" for number in range(count)]
    fill(account, "a", *names, "z")
    assert list(store.list("")) == ["a", *names, "z"]
    assert list(store.list("key-")) == names


@pytest.mark.parametrize("inclusive", [True, False])
@pytest.mark.parametrize("name", ["key", "k"])
def test_a_prefix_may_be_the_name_of_a_key(
    service: FakeFortanix, account: Account, store: FortanixStore, inclusive: bool, name: str
) -> None:
    service.inclusive = inclusive
    fill(account, "a", name, f"{name}-2", "z")
    assert list(store.list(name)) == [name, f"{name}-2"]


def test_a_list_holds_only_what_can_be_a_key(account: Account, store: FortanixStore) -> None:
    fill(account, "key", "folder/key", ".", "x" * 256, "a\\b")
    fill(account, "opaque", obj_type="OPAQUE")
    fill(account, "secret", obj_type="SECRET")
    fill(account, "foreign", obj_type="AES")
    fill(account, "certificate", obj_type="CERTIFICATE")
    assert list(store.list("")) == ["key", "opaque", "secret"]


def test_objects_without_a_name_do_no_harm(service: FakeFortanix, store: FortanixStore) -> None:
    def answer(request: Request) -> Reply:
        return Reply(200, [] if "start" in request.query else [{"kid": "1"}, {"name": "key"}, {"name": None}])

    with service.instead(answer):
        assert list(store.list("")) == ["key"]
    with service.instead(lambda request: Reply(200, [{"kid": "1"}])):
        assert list(store.list("")) == []


def test_a_list_ends_though_the_last_name_of_a_page_is_deleted(
    service: FakeFortanix, account: Account, store: FortanixStore
) -> None:
    names = [f"key-{number:03}" for number in range(250)]
    fill(account, *names)

    def delete_it(request: Request) -> Reply | None:
        account.sobjects.pop(request.query.get("start", ""), None)
        return None

    with service.instead(delete_it):
        assert list(store.list("")) == names


def test_a_service_that_repeats_a_page_is_an_error(
    service: FakeFortanix, account: Account, store: FortanixStore
) -> None:
    fill(account, *(f"key-{number:03}" for number in range(150)))
    page = [{"name": f"key-{number:03}"} for number in range(100)]
    with service.instead(lambda request: Reply(200, page)), pytest.raises(KeyStoreError, match="again and again"):
        store.list("")


@pytest.mark.parametrize("answer", [{"items": []}, ["key"], b"", b"null", b'[{"name":'])
def test_a_list_that_cannot_be_read_is_an_error(service: FakeFortanix, store: FortanixStore, answer: Any) -> None:
    for call in (lambda: store.list(""), store.status):
        with service.instead(lambda request: Reply(200, answer)), pytest.raises(KeyStoreError, match="no list of obj"):
            call()


# --- foreign objects, refusals ---


def test_a_key_that_is_disabled_is_told_and_can_be_deleted(account: Account, store: FortanixStore) -> None:
    fill(account, "key", enabled=False)
    with pytest.raises(KeyStoreError, match="the key 'key' is disabled there: enable it, or delete it"):
        store.get("key")
    with pytest.raises(KeyExists):
        store.create("key", VALUE)
    store.delete("key")
    assert account.sobjects == {}


@pytest.mark.parametrize("value", [None, 7, ["a"], "no base64", "8f5", b64encode(b"\xff\xfe").decode()])
def test_an_object_without_text_is_no_key(account: Account, store: FortanixStore, value: Any) -> None:
    fill(account, "key", value=value)
    with pytest.raises(NotAKey, match="the object 'key' is no key, for its value is no text: rename it") as told:
        store.get("key")
    assert str(value) not in str(told.value) or value in (None, 7)


def test_an_answer_without_a_value_says_nothing_of_the_object(service: FakeFortanix, store: FortanixStore) -> None:
    with service.instead(lambda request: Reply(200, {})), pytest.raises(KeyStoreError, match="without its val") as told:
        store.get("key")
    assert not isinstance(told.value, NotAKey)


def test_an_object_of_another_type_is_no_key(account: Account, store: FortanixStore) -> None:
    fill(account, "key", obj_type="AES")
    with pytest.raises(NotAKey, match="of the type AES: rename it"):
        store.get("key")


@pytest.mark.parametrize("kid", [None, "", 7])
def test_an_object_without_an_id_cannot_be_deleted(account: Account, store: FortanixStore, kid: Any) -> None:
    fill(account, "key")
    account.sobjects["key"]["kid"] = kid
    with pytest.raises(KeyStoreError, match="without its ID"):
        store.delete("key")


@pytest.mark.parametrize(
    ("right", "call"),
    [
        ("create", lambda store: store.create("new", VALUE)),
        ("export", lambda store: store.get("key")),
        ("export", lambda store: store.delete("key")),
        ("delete", lambda store: store.delete("key")),
        ("list", lambda store: store.list("")),
        ("list", lambda store: store.status()),
    ],
)
def test_a_right_that_is_missing_is_named(
    account: Account, store: FortanixStore, right: str, call: Callable[[FortanixStore], object]
) -> None:
    fill(account, "key")
    account.denied.add(right)
    with pytest.raises(KeyStoreError, match=f"lacks the right to {right} objects") as told:
        call(store)
    assert not isinstance(told.value, KeyStoreUnreachable)


def test_an_api_key_that_was_revoked_is_told(service: FakeFortanix, store: FortanixStore) -> None:
    service.accounts.clear()
    for call in (store.status, lambda: store.get("key"), lambda: store.create("key", VALUE), lambda: store.list("")):
        with pytest.raises(KeyStoreError, match=r"does not take 'credentials\.key'"):
            call()


@pytest.mark.parametrize("status", [404, 409])
def test_only_the_exact_words_mean_that_a_key_is_there_or_not(
    service: FakeFortanix, account: Account, store: FortanixStore, status: int
) -> None:
    fill(account, "key")

    def answer(request: Request) -> Reply | None:
        return None if request.is_of("POST", "/export") else Reply(status, b"group does not exist", "text/plain")

    calls: list[Callable[[], object]] = [lambda: store.create("key", VALUE), lambda: store.delete("key")]
    with service.instead(answer):
        for call in calls:
            with pytest.raises(KeyStoreError, match=f"{status} .*: group does not exist"):
                call()
    with (
        service.instead(lambda request: Reply(status, b"<html>Not here</html>", "text/html")),
        pytest.raises(KeyStoreError, match=f"{status} .*Not here"),
    ):
        store.get("key")


@pytest.mark.parametrize("status", [202, 400, 402, 429, 507])
def test_what_the_service_says_is_passed_on_unless_it_is_the_value(
    service: FakeFortanix, store: FortanixStore, status: int
) -> None:
    with (
        service.instead(lambda request: Reply(status, b"the quota\nis used up", "text/plain")),
        pytest.raises(KeyStoreError, match=f"{status} .*: the quota is used up"),
    ):
        store.create("key", VALUE)
    with service.instead(lambda request: Reply(status, request.body)), pytest.raises(KeyStoreError) as told:
        store.create("key", VALUE)
    assert TEXT not in str(told.value)


def test_a_key_that_somebody_else_deletes_at_that_moment_is_not_found(
    service: FakeFortanix, account: Account, store: FortanixStore
) -> None:
    fill(account, "key")

    def delete_before(request: Request) -> Reply | None:
        if request.method == "DELETE":
            account.sobjects.clear()
        return None

    with service.instead(delete_before), pytest.raises(KeyNotFound):
        store.delete("key")


# --- answers that are lost, connections ---


def test_a_create_whose_answer_was_lost_has_worked(service: FakeFortanix, store: FortanixStore) -> None:
    with service.losing("PUT"):
        store.create("key", VALUE)
    assert store.get("key") == VALUE


def test_a_create_whose_answer_was_lost_does_not_take_over_the_key_of_another(
    service: FakeFortanix, account: Account, store: FortanixStore
) -> None:
    store.create("key", b"another")
    with service.losing("PUT"), pytest.raises(KeyExists):
        store.create("key", VALUE)

    def hide(request: Request) -> Reply | None:  # an object of another group
        return service._error(404, "sobject does not exist") if request.is_of("POST", "/export") else None

    with service.losing("PUT", then=lambda: setattr(service, "_odd", hide)), pytest.raises(KeyExists):
        store.create("key", VALUE)


def test_a_delete_whose_answer_was_lost_has_worked(
    service: FakeFortanix, account: Account, store: FortanixStore
) -> None:
    store.create("key", VALUE)
    with service.losing("DELETE"):
        store.delete("key")
    assert account.sobjects == {}


def test_a_restart_of_the_service_is_an_outage_and_no_more(service: FakeFortanix, store: FortanixStore) -> None:
    store.create("key", VALUE)
    service.stop()
    with pytest.raises(KeyStoreUnreachable):
        store.get("key")
    service.start()
    assert store.get("key") == VALUE
    service.restart()
    assert store.get("key") == VALUE


def test_connections_are_used_again(service: FakeFortanix, store: FortanixStore) -> None:
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
    with FakeFortanix(server) as service:
        settings = {"endpoint": service.endpoint, "credentials.key": service.new_app()}
        fortanix.open({**settings, "tls.ca": str(trusted)}).close()
        for wrong in ({}, {"tls.ca": str(other)}):
            with pytest.raises(KeyStoreUnreachable, match=r"its certificate is not trusted .* set 'tls\.ca'"):
                fortanix.open({**settings, **wrong})
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        for right in ({}, {"tls.ca": str(other)}):
            fortanix.open({**settings, **right}).close()


# --- a whole server ---


def test_a_server_runs_with_what_the_page_shows(tmp_path: Path) -> None:
    pair = make("p256", sans=["127.0.0.1"])
    with FakeFortanix(pair) as service:
        keystore = shown_keystore("keystore-fortanix.md")
        section = keystore["fortanix"]["sdkms"]
        section["endpoint"] = service.endpoint
        section["tls"]["ca"] = str(pair.write(tmp_path, "ca")[0])
        key = service.new_app()
        account = service.accounts[key]
        account.groups.add(section["group_id"])
        environment = {"FORTANIX_API_KEY": key}
        with start_server(tmp_path / "server", keystore=keystore, environment=environment) as server:
            assert f"Fortanix SDKMS: {service.endpoint}" in server.stdout
            use(server)
            assert account.sobjects["my-key"]["group_id"] == section["group_id"]
            assert key not in json.dumps([server.stdout, server.stderr])
            assert server.stop() == 0
