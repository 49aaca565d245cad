import os
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from keswick.keystore import KeyExists, KeyNotFound, KeyStoreError, KeyStoreUnreachable, azure, azure_login, http
from keswick.keystore.azure import AzureStore
from support.certificates import Pair, make
from support.connect_proxy import ConnectProxy
from support.fake_azure import (
    APPLICATION,
    APPLICATION_SECRET,
    RIGHTS,
    TENANT,
    FakeEntra,
    FakeIdentityEndpoint,
    FakeVault,
)
from support.fault_proxy import FaultProxy
from support.key_stores import closing_all
from support.rest_service import Reply, Request
from support.server import start_server
from support.sockets import listening
from support.walker import BLOCK, section

PAGE = Path(__file__).parents[2] / "docs" / "keystore-azure.md"
VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'
SETTLE_SECONDS = 0.03
CREDENTIALS = {
    "credentials.tenant_id": TENANT,
    "credentials.client_id": APPLICATION,
    "credentials.client_secret": APPLICATION_SECRET,
}
SERVICE = "the key store 'azure.keyvault'"


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make(
        "p256",
        sans=["127.0.0.1", "my-vault.vault.azure.net", "login.microsoftonline.com"],
        eku=["server"],
    )


@pytest.fixture
def ca(pair: Pair, tmp_path: Path) -> str:
    path = tmp_path / "ca.crt"
    path.write_bytes(pair.cert_pem)
    return str(path)


@pytest.fixture(autouse=True)
def soon() -> Iterator[None]:
    with (
        patch.object(http, "pause_seconds", lambda: 0.01),
        patch.object(azure, "SETTLE_SECONDS", SETTLE_SECONDS),
    ):
        yield


@pytest.fixture
def entra(pair: Pair) -> Iterator[FakeEntra]:
    with FakeEntra(pair) as entra:
        yield entra


@pytest.fixture
def vault(entra: FakeEntra, pair: Pair) -> Iterator[FakeVault]:
    with FakeVault(entra.tokens, pair, tick=SETTLE_SECONDS / 1.5) as vault:
        yield vault


Opening = Callable[..., AzureStore]


@pytest.fixture
def new_store(vault: FakeVault, entra: FakeEntra, ca: str) -> Iterator[Opening]:
    """A store with other settings where a test says so; those that are None are left out."""

    def new_store(**changes: str | None) -> AzureStore:
        usual = {"endpoint": vault.endpoint, "authority": entra.endpoint, "tls.ca": ca, **CREDENTIALS, **changes}
        return AzureStore({key: value for key, value in usual.items() if value is not None})

    with closing_all(new_store) as open_one:
        yield open_one


@pytest.fixture
def store(new_store: Opening) -> AzureStore:
    return new_store()


def paths(vault: FakeVault) -> list[str]:
    return [f"{request.method} {request.target}" for request in vault.requests]


# --- requests ---


def test_the_requests_are_those_of_the_service(store: AzureStore, vault: FakeVault) -> None:
    store.create("my-key", VALUE)
    version = vault.secrets["my-key"].versions[0]["version"]
    assert store.get("my-key") == VALUE
    assert list(store.list("my")) == ["my-key"]
    store.delete("my-key")
    versions = "GET /secrets/my-key/versions?maxresults=25&api-version=7.5"
    assert paths(vault) == [
        "GET /secrets?maxresults=1&api-version=7.5",  # without a token
        versions,
        "PUT /secrets/my-key?api-version=7.5",
        versions,
        versions,
        f"GET /secrets/my-key/{version}?api-version=7.5",
        "GET /secrets?maxresults=25&api-version=7.5",
        versions,
        "DELETE /secrets/my-key?api-version=7.5",
        "DELETE /deletedsecrets/my-key?api-version=7.5",
    ]
    first, *others = vault.requests
    assert first.headers.get("Authorization") is None
    assert len({request.headers["Authorization"] for request in others}) == 1
    assert vault.requests[2].json == {"value": VALUE.decode(), "tags": {"kes-name": "my-key"}}
    assert vault.connections == 1


def test_one_token_is_enough_for_many_threads(store: AzureStore, vault: FakeVault, entra: FakeEntra) -> None:
    vault.put("key", VALUE.decode())
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(lambda _: store.get("key"), range(200))) == [VALUE] * 200
    (token,) = entra.seen("POST", "/token")
    assert token.target == f"/{TENANT}/oauth2/v2.0/token"
    assert f"scope=https%3A%2F%2F127.0.0.1%3A{vault.port}%2F.default" in token.body.decode()
    assert vault.connections <= 32


def test_the_vault_may_restart(store: AzureStore, vault: FakeVault) -> None:
    store.create("key", VALUE)
    vault.restart()
    assert store.get("key") == VALUE
    vault.stop()
    with pytest.raises(KeyStoreUnreachable, match="is it running"):
        store.get("key")
    vault.start()
    assert store.get("key") == VALUE


def test_the_service_s_own_library_and_the_store_understand_each_other(
    store: AzureStore, vault: FakeVault, entra: FakeEntra, ca: str
) -> None:
    """Which holds what the vault here answers against another client, too."""
    from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
    from azure.identity import ClientSecretCredential
    from azure.keyvault.secrets import SecretClient

    trust = {"connection_verify": ca}
    credential = ClientSecretCredential(
        *CREDENTIALS.values(), authority=entra.endpoint, disable_instance_discovery=True, **trust
    )
    with credential, SecretClient(vault.endpoint, credential, verify_challenge_resource=False, **trust) as library:
        store.create("ours", VALUE)
        assert library.get_secret("ours").value == VALUE.decode()
        first = library.set_secret("theirs", VALUE.decode())
        library.set_secret("theirs", "newer")
        vault.secrets["theirs"].versions[1]["attributes"]["created"] += 1
        assert store.get("theirs") == VALUE
        assert [version.version for version in library.list_properties_of_secret_versions("theirs")].count(
            first.properties.version
        ) == 1
        for number in range(60):
            vault.put(f"more-{number}", "x")
        assert sorted(secret.name for secret in library.list_properties_of_secrets()) == sorted(store.list(""))
        store.delete("ours")
        with pytest.raises(ResourceNotFoundError):
            library.get_secret("ours")
        library.begin_delete_secret("theirs").wait()
        with pytest.raises(KeyNotFound):
            store.get("theirs")
        with pytest.raises(ResourceExistsError):
            library.set_secret("theirs", "again")
        store.create("theirs", VALUE)
        assert library.get_secret("theirs").value == VALUE.decode()


# --- versions ---


def test_the_oldest_of_many_versions_is_the_key(store: AzureStore, vault: FakeVault) -> None:
    for number in range(60):
        vault.put("key", f"newer {number}", created=1_800_000_000 + number)
    vault.put("key", VALUE.decode(), created=1_600_000_000)
    assert store.get("key") == VALUE
    pages = vault.seen("GET", "/versions")
    assert [page.query.get("$skiptoken") for page in pages] == [None, "25", "50"]
    with pytest.raises(KeyExists):
        store.create("key", b"x")


def test_a_list_follows_its_pages(store: AzureStore, vault: FakeVault) -> None:
    names = [f"key-{number}" for number in range(103)]
    for name in names:
        vault.put(name, "x")
    assert sorted(store.list("")) == sorted(names)
    assert len(vault.seen("GET", "/secrets")) == 1 + 5


def test_a_list_may_take_longer_than_another_call(store: AzureStore, vault: FakeVault) -> None:
    """Nobody could take many keys elsewhere otherwise."""
    names = [f"key-{number}" for number in range(103)]
    for name in names:
        vault.put(name, "x")
    with vault.instead(lambda request: time.sleep(0.2)), patch.object(http, "CALL_SECONDS", 0.8):
        assert sorted(store.list("")) == sorted(names)


def test_a_list_that_never_ends_is_told(store: AzureStore, vault: FakeVault) -> None:
    def endless(request: Request) -> Reply | None:
        link = f"{vault.endpoint}/secrets?page={'b' if request.query.get('page') == 'a' else 'a'}"
        reply = vault.handle(request)
        return reply if reply.status == 401 else Reply(200, {"value": [], "nextLink": link})

    with vault.instead(endless), pytest.raises(KeyStoreError, match="what no vault says"):
        store.list("")


@pytest.mark.parametrize("link", ["https://example.com/secrets?api-version=7.5", "http://127.0.0.1/secrets", 7])
def test_no_page_elsewhere_is_asked_for(store: AzureStore, vault: FakeVault, link: Any) -> None:
    def elsewhere(request: Request) -> Reply | None:
        reply = vault.handle(request)
        return reply if reply.status != 200 else Reply(200, {"value": [], "nextLink": link})

    with vault.instead(elsewhere), pytest.raises(KeyStoreError, match="what no vault says"):
        store.list("")


def test_an_absent_secret_may_have_no_list_of_versions(store: AzureStore, vault: FakeVault) -> None:
    def absent(request: Request) -> Reply | None:
        if request.headers.get("Authorization") and request.segments[-1] == "versions":
            return Reply(404, {"error": {"code": "SecretNotFound", "message": "was not found in this key vault"}})
        return None

    with vault.instead(absent):
        for call in (store.get, store.delete):
            with pytest.raises(KeyNotFound):
                call("key")


# --- creating ---


def test_of_servers_that_create_at_once_one_wins(new_store: Opening, vault: FakeVault) -> None:
    """All have looked before the first one sets, so that all set, within one second of the vault or two."""
    servers = [new_store() for _ in range(6)]
    looked = threading.Barrier(len(servers))
    put = AzureStore._set

    def set_together(self: AzureStore, *arguments: Any) -> tuple[str, bool]:
        looked.wait()
        return put(self, *arguments)

    def create(server: AzureStore, name: str) -> bool:
        try:
            server.create(name, str(id(server)).encode())
        except KeyExists:
            return False
        return True

    for number in range(10):
        name = f"key-{number}"
        with patch.object(AzureStore, "_set", set_together), ThreadPoolExecutor(len(servers)) as pool:
            won = list(pool.map(create, servers, [name] * len(servers)))
        assert won.count(True) == 1
        assert len(vault.secrets[name].versions) == len(servers)
        assert {server.get(name) for server in servers} == {str(id(servers[won.index(True)])).encode()}


def test_threads_of_one_server_make_one_version(store: AzureStore, vault: FakeVault) -> None:
    def create(number: int) -> bool:
        try:
            store.create("key", b"%d" % number)
        except KeyExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(create, range(8)))
    assert won.count(True) == 1
    assert store.get("key") == b"%d" % won.index(True)
    assert len(vault.secrets["key"].versions) == 1


def test_a_create_whose_answer_was_lost_knows_its_own_key(
    entra: FakeEntra, pair: Pair, ca: str, tmp_path: Path
) -> None:
    """The first set is carried out, but its answer is lost; the second one makes another version, which is not the key
    then."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*pair.write(tmp_path))
    with FakeVault(entra.tokens, tick=SETTLE_SECONDS / 1.5) as vault, FaultProxy(vault.port, tls=tls) as proxy:
        store = AzureStore({"endpoint": proxy.endpoint, "authority": entra.endpoint, "tls.ca": ca, **CREDENTIALS})
        proxy.choose = lambda request: "lost" if request.method == "PUT" and not vault.secrets else None
        store.create("key", VALUE)
        first, second = vault.secrets["key"].versions
        assert first["value"] == second["value"]
        second["attributes"]["created"] = first["attributes"]["created"] + 1
        assert store.get("key") == VALUE
        store.close()


def test_a_create_whose_answer_was_lost_knows_the_key_of_another(store: AzureStore, vault: FakeVault) -> None:
    def somebody_else_was_first() -> None:
        vault.put("key", "theirs", created=1)

    with vault.losing("PUT", "/key", then=somebody_else_was_first), pytest.raises(KeyExists):
        store.create("key", VALUE)
    assert store.get("key") == b"theirs"


def test_what_has_the_name_already_is_told(store: AzureStore, vault: FakeVault) -> None:
    vault.put("taken", "x")
    vault.put("off", "x", enabled=False)
    vault.put("Other-Case", "x")
    vault.put("certificate", "x")["managed"] = True
    with pytest.raises(KeyExists):
        store.create("taken", VALUE)
    for name, words in (("off", "is disabled"), ("other-case", "beside 'Other-Case'"), ("certificate", "belongs to a")):
        with pytest.raises(KeyStoreError, match=words):
            store.create(name, VALUE)
    assert not [request for request in vault.requests if request.method == "PUT"]


@pytest.mark.parametrize("name", ["a_b", "a.b", "a b", "ключ", "x" * 128])
def test_names_that_no_vault_has_are_not_asked_for(store: AzureStore, vault: FakeVault, name: str) -> None:
    with pytest.raises(KeyStoreError, match="A-Z a-z 0-9 -"):
        store.create(name, VALUE)
    for call in (store.get, store.delete):
        with pytest.raises(KeyNotFound):
            call(name)
    assert not vault.requests


def test_names_differ_by_case_even_if_the_vault_does_not_say_so(store: AzureStore, vault: FakeVault) -> None:
    vault.echoes_case = True
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    for call in (store.get, store.delete):
        with pytest.raises(KeyNotFound):
            call("KEY")
    with pytest.raises(KeyStoreError, match="do not differ by case"):
        store.create("Key", VALUE)
    vault.secrets["key"].versions[0]["tags"] = {"kes-name": "copied-from"}
    assert store.get("key") == VALUE


def test_what_is_no_text_or_too_long_is_told(store: AzureStore) -> None:
    with pytest.raises(KeyStoreError, match="is none"):
        store.create("key", b"\xff")
    with pytest.raises(KeyStoreError, match="400 Bad Request: Secret value has a length") as told:
        store.create("key", b"secret " * 4000)
    assert "secret secret" not in str(told.value)


def test_no_error_shows_what_was_to_be_kept(store: AzureStore, vault: FakeVault) -> None:
    def echo(request: Request) -> Reply | None:
        if request.method == "PUT":
            return Reply(400, {"error": {"code": "BadParameter", "message": f"no: {request.json['value']}"}})
        return None

    with vault.instead(echo), pytest.raises(KeyStoreError, match="no: ") as told:
        store.create("key", VALUE)
    assert "8f58" not in str(told.value)


# --- secrets that are no keys, or not now ---


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"enabled": False}, "is disabled: enable it"),
        ({"nbf": 4_000_000_000}, "is not valid before 2096-10-02: change its activation date"),
        ({"exp": 1_000_000_000}, "has expired on 2001-09-09: change its expiration date"),
    ],
)
def test_a_key_that_cannot_be_used_now_is_told(
    store: AzureStore, vault: FakeVault, attributes: dict[str, Any], words: str
) -> None:
    vault.put("key", VALUE.decode(), **attributes)
    vault.put("key", "newer", created=1_900_000_000)
    for call in (lambda: store.get("key"), lambda: store.create("key", VALUE)):
        with pytest.raises(KeyStoreError, match=f"the oldest version of the secret 'key', [0-9a-f]+, .* {words}"):
            call()
    store.delete("key")
    assert not vault.secrets


def test_one_that_is_disabled_meanwhile_is_told(store: AzureStore, vault: FakeVault) -> None:
    version = vault.put("key", VALUE.decode())

    def disable(request: Request) -> Reply | None:
        version["attributes"]["enabled"] = request.segments[-1] != version["version"]
        return None

    store.status()
    with vault.instead(disable), pytest.raises(KeyStoreError, match="403 Forbidden: enable the secret; Operation get"):
        store.get("key")


def test_the_limits_of_a_key_are_moments(store: AzureStore, vault: FakeVault) -> None:
    now = int(time.time())
    vault.put("key", VALUE.decode(), nbf=now - 60, exp=now + 3600)
    assert store.get("key") == VALUE


def test_secrets_of_certificates_are_no_keys(store: AzureStore, vault: FakeVault) -> None:
    vault.put("certificate", "x")["managed"] = True
    vault.put("key", VALUE.decode())
    assert list(store.list("")) == ["key"]
    for call in (store.get, store.delete):
        with pytest.raises(KeyStoreError, match="belongs to a certificate"):
            call("certificate")


# --- the bin ---


def test_a_name_in_the_bin_is_purged_and_used_again(store: AzureStore, vault: FakeVault) -> None:
    vault.put("key", "old")
    vault.bin["key"] = vault.secrets.pop("key")
    vault.bin["key"].busy = 3
    vault.purging = 3
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    assert not vault.bin


def test_a_delete_waits_until_the_name_is_free(store: AzureStore, vault: FakeVault) -> None:
    vault.put("key", VALUE.decode())
    vault.deleting = 3
    store.delete("key")
    assert not vault.bin
    assert len(vault.seen("DELETE", "/deletedsecrets/key")) == 4
    store.create("key", b"new")


def test_what_is_deleted_for_long_is_told_in_time(store: AzureStore, vault: FakeVault) -> None:
    """A delete has done its part then; a create cannot."""
    vault.put("key", VALUE.decode())
    vault.deleting = 1_000_000
    store.status()
    begin = time.monotonic()
    with patch.object(http, "CALL_SECONDS", 0.5):
        store.delete("key")
        with pytest.raises(KeyNotFound):
            store.delete("key")
        with pytest.raises(KeyStoreError, match="still deleting what had that name: try again in a minute"):
            store.create("key", VALUE)
    assert time.monotonic() - begin < 10
    vault.bin["key"].busy = 0
    store.create("key", VALUE)


def test_a_vault_without_a_bin_has_nothing_to_purge(store: AzureStore, vault: FakeVault) -> None:
    vault.recoverable = False
    vault.put("key", VALUE.decode())
    store.delete("key")
    assert not vault.seen("DELETE", "/deletedsecrets/key")


@pytest.mark.parametrize("protected", [False, True])
def test_a_purge_that_is_denied_is_told(store: AzureStore, vault: FakeVault, protected: bool) -> None:
    if protected:
        vault.purge_protection = True
    else:
        vault.rights = RIGHTS - {"purge"}
    vault.put("key", VALUE.decode())
    words = r"'key' is deleted, but its name is not free, .* 'Key Vault Secrets Officer'.*'purge'.* purge protection"
    with pytest.raises(KeyStoreError, match=words):
        store.delete("key")
    with pytest.raises(KeyNotFound):
        store.get("key")
    with pytest.raises(KeyStoreError, match=words):
        store.create("key", VALUE)


@pytest.mark.parametrize("lost", [False, True])
def test_a_key_that_somebody_else_deleted_is_not_found(store: AzureStore, vault: FakeVault, lost: bool) -> None:
    vault.put("key", VALUE.decode())

    def delete_first(request: Request) -> Reply | None:
        if request.method == "DELETE" and len(vault.seen("DELETE", "/secrets/key")) == 1:
            vault.bin["key"] = vault.secrets.pop("key")
            return Reply(503) if lost else None  # which of two it was, nobody knows then
        return None

    with vault.instead(delete_first):
        if lost:
            store.delete("key")
        else:
            with pytest.raises(KeyNotFound):
                store.delete("key")


# --- rights ---


@pytest.mark.parametrize("right", sorted(RIGHTS - {"purge"}))
def test_a_right_that_is_missing_is_named(store: AzureStore, vault: FakeVault, right: str) -> None:
    vault.put("key", VALUE.decode())
    vault.rights = RIGHTS - {right}
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: store.get("key"),
        "list": lambda: store.list(""),
        "set": lambda: store.create("new", VALUE),
        "delete": lambda: store.delete("key"),
    }
    words = f"403 Forbidden: give who signs in the role 'Key Vault Secrets Officer', or the permission '{right}'"
    with pytest.raises(KeyStoreError, match=words):
        calls[right]()
    if right == "list":
        with pytest.raises(KeyStoreError, match=words):
            store.status()


def test_a_firewall_is_told(store: AzureStore, vault: FakeVault) -> None:
    store.status()
    body = {
        "error": {
            "code": "Forbidden",
            "message": "Client address is not authorized and caller is not a trusted service.",
            "innererror": {"code": "ForbiddenByFirewall"},
        }
    }
    with vault.instead(lambda request: Reply(403, body)), pytest.raises(KeyStoreError, match="vault's firewall"):
        store.get("key")


# --- signing in ---


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"credentials.client_secret": "a-wrong-one"}, r"'credentials\.client_secret' is wrong: take the value"),
        ({"credentials.client_id": TENANT}, r"'credentials\.client_id' is no application of the tenant"),
        ({"credentials.tenant_id": APPLICATION}, r"'credentials\.tenant_id', or 'authority' .* is wrong"),
    ],
)
def test_wrong_credentials_are_told_and_not_tried_all_the_time(
    new_store: Opening, entra: FakeEntra, changes: dict[str, str], words: str
) -> None:
    store = new_store(**changes)
    for call in (store.status, lambda: store.get("key"), lambda: store.list("")):
        with pytest.raises(KeyStoreError, match=words) as told:
            call()
        assert "a-wrong-one" not in str(told.value)
        assert not isinstance(told.value, KeyStoreUnreachable)
    asked = len(entra.requests)
    with pytest.raises(KeyStoreError):
        store.status()
    assert len(entra.requests) == asked
    race, trouble = store.warnings()
    assert "oldest version" in race
    assert trouble.startswith("keys cannot be read now: ")


def test_credentials_that_are_put_right_work_soon(new_store: Opening, entra: FakeEntra) -> None:
    entra.secret = "not yet known"
    store = new_store()
    with pytest.raises(KeyStoreError):
        store.status()
    entra.secret = APPLICATION_SECRET
    with patch.object(azure_login, "REFUSED_SECONDS", 0.01), pytest.raises(KeyStoreError):
        store.status()
    store._login._next_try = 0.0
    assert store.status() >= 0


@pytest.mark.parametrize("secret", [CREDENTIALS["credentials.client_secret"]])
def test_nothing_shows_a_secret(store: AzureStore, entra: FakeEntra, secret: str) -> None:
    store.create("key", VALUE)
    objects: list[Any] = [store, store._login, store._http, store._login._token, azure._version]
    assert not any(secret in repr(thing) or "Bearer" in repr(thing) for thing in objects)
    (token,) = entra.tokens.audiences
    assert token not in repr(store._login._token)
    store._login._token = None
    store._login._credential = store._login._new_credential()
    with (
        entra.instead(lambda r: Reply(400, {"error": "invalid_request", "error_description": f"you said {secret}"})),
        pytest.raises(KeyStoreError) as told,
    ):
        store.get("key")
    assert secret not in str(told.value)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_service_for_tokens_in_trouble_is_asked_again(new_store: Opening, entra: FakeEntra, status: int) -> None:
    store = new_store()
    with entra.instead(lambda request: Reply(status) if len(entra.requests) < 3 else None):
        assert store.status() >= 0
    entra.requests.clear()
    other = new_store()
    with (
        entra.instead(lambda request: Reply(status)),
        pytest.raises(KeyStoreUnreachable, match=f"signing in failed: 127.0.0.1:{entra.port} answered {status}"),
    ):
        other.status()
    assert len(entra.requests) == 3
    assert other.status() >= 0


def test_a_service_for_tokens_that_is_away_is_told(new_store: Opening, entra: FakeEntra) -> None:
    store = new_store()
    entra.stop()
    with pytest.raises(
        KeyStoreUnreachable, match=rf"127\.0\.0\.1:{entra.port} cannot be reached \(Connection refused\)"
    ):
        store.status()
    entra.start()
    assert store.status() >= 0


def test_a_service_for_tokens_that_hangs_holds_no_call_up(new_store: Opening) -> None:
    released = threading.Event()
    with listening(lambda connection: released.wait(30)) as port, patch.object(http, "CALL_SECONDS", 0.3):
        store = new_store(authority=f"https://127.0.0.1:{port}")
        begin = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(store.get, "key") for _ in range(8)]
            for call in calls:
                with pytest.raises(KeyStoreUnreachable, match="signing in takes too long"):
                    call.result()
        assert time.monotonic() - begin < 5
        released.set()


def test_a_service_for_tokens_of_somebody_else_is_told(new_store: Opening, tmp_path: Path) -> None:
    with FakeEntra(make("p256", name="other", sans=["127.0.0.1"])) as other:
        store = new_store(authority=other.endpoint)
        with pytest.raises(KeyStoreUnreachable, match=r"has a certificate that is not trusted .* set 'tls\.ca'"):
            store.status()
        assert not other.requests


def test_authorities_that_are_renewed_on_disk_are_used_to_sign_in(
    new_store: Opening, vault: FakeVault, pair: Pair, ca: str
) -> None:
    renewed = make("p256", name="renewed", sans=["127.0.0.1"])
    with FakeEntra(renewed) as entra, patch.object(http, "RENEWAL_SECONDS", 0):
        vault.tokens = entra.tokens
        store = new_store(authority=entra.endpoint)
        with pytest.raises(KeyStoreUnreachable, match="not trusted"):
            store.status()
        Path(ca).write_bytes(pair.cert_pem + renewed.cert_pem)
        assert store.status() >= 0


def test_a_vault_of_somebody_else_is_told(new_store: Opening, entra: FakeEntra, tmp_path: Path) -> None:
    other, _ = make("p256", sans=["127.0.0.1"]).write(tmp_path, "other")
    store = new_store(**{"tls.ca": str(other)})
    with pytest.raises(KeyStoreUnreachable, match=r"not trusted.*set 'tls\.ca'"):
        store.status()
    assert not entra.requests


def test_a_token_that_ends_is_renewed(store: AzureStore, entra: FakeEntra, vault: FakeVault) -> None:
    entra.seconds = 1.0
    vault.put("key", VALUE.decode())
    deadline = time.monotonic() + 30
    while len(entra.tokens.audiences) < 3 and time.monotonic() < deadline:
        assert store.get("key") == VALUE
    assert len(entra.tokens.audiences) == 3


def test_a_token_is_renewed_while_it_is_good(store: AzureStore, entra: FakeEntra, vault: FakeVault) -> None:
    """Nobody waits for it, and it does not matter if that fails."""
    entra.seconds = 100.0
    vault.put("key", VALUE.decode())
    store.status()
    token = store._login._token
    assert token is not None
    store._login._token = azure_login._Token(token.text, token.taken, time.monotonic(), token.ends)
    store._login._next_renewal = 0.0
    entra.stop()
    assert store.get("key") == VALUE
    entra.start()
    store._login._next_renewal = 0.0
    deadline = time.monotonic() + 30
    while store._login._token.text == token.text and time.monotonic() < deadline:
        assert store.get("key") == VALUE
        store._login._next_renewal = 0.0
    assert store._login._token.text != token.text


def test_a_token_that_the_vault_no_longer_takes_is_replaced(
    store: AzureStore, entra: FakeEntra, vault: FakeVault
) -> None:
    vault.put("key", VALUE.decode())
    store.status()
    entra.tokens.revoke_all()
    with pytest.raises(KeyStoreError, match=f"401 Unauthorized: the vault is of the tenant '{TENANT}'"):
        store.get("key")  # it is too new to be taken for old
    with patch.object(azure_login, "PAUSE_SECONDS", 0.0):
        assert store.get("key") == VALUE
        store.create("new", VALUE)


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer authorization="https://login.microsoftonline.com/x", resource="https://management.azure.com"',
        'Bearer authorization="https://login.microsoftonline.com/x", resource="https://0.0.1.example"',
        'Bearer authorization="https://login.microsoftonline.com/x"',
        "Basic",
        "",
    ],
)
def test_no_token_is_got_for_another_service(
    store: AzureStore, vault: FakeVault, entra: FakeEntra, challenge: str
) -> None:
    def challenged(request: Request) -> Reply:
        return Reply(401, headers={"WWW-Authenticate": challenge})

    with vault.instead(challenged), pytest.raises(KeyStoreError, match="is the endpoint that of a vault"):
        store.status()
    assert not entra.requests


def test_what_asks_for_no_token_is_no_vault(store: AzureStore, vault: FakeVault, entra: FakeEntra) -> None:
    with vault.instead(lambda request: Reply(200, b"<html>")), pytest.raises(KeyStoreError, match="that of a vault"):
        store.status()
    assert not entra.requests


@pytest.mark.parametrize("place", ["app service", "virtual machine"])
def test_a_managed_identity_signs_in(vault: FakeVault, entra: FakeEntra, new_store: Opening, place: str) -> None:
    with FakeIdentityEndpoint(entra.tokens) as endpoint:
        environment = {
            "app service": {"IDENTITY_ENDPOINT": f"{endpoint.endpoint}/msi/token", "IDENTITY_HEADER": endpoint.header},
            "virtual machine": {"AZURE_POD_IDENTITY_AUTHORITY_HOST": endpoint.endpoint},
        }[place]
        none = dict.fromkeys(CREDENTIALS)
        with patch.dict(os.environ, environment):
            store = new_store(**none, **{"managed_identity.client_id": APPLICATION})
            store.create("key", VALUE)
            assert store.get("key") == VALUE
            assert endpoint.requests[-1].query["client_id"] == APPLICATION
            assert endpoint.requests[-1].query["resource"] == vault.endpoint
            other = new_store(**none, **{"managed_identity.client_id": TENANT})
            with pytest.raises(KeyStoreError, match=r"look at 'managed_identity\.client_id'"):
                other.status()
            any_identity = new_store(**none)
            assert any_identity.get("key") == VALUE
            assert "client_id" not in endpoint.requests[-1].query
            with endpoint.instead(lambda request: Reply(500)), pytest.raises(KeyStoreUnreachable):
                new_store(**none, **{"managed_identity.client_id": APPLICATION}).status()
    assert not entra.requests


def test_the_environment_says_who_signs_in_where_the_configuration_does_not(
    vault: FakeVault, entra: FakeEntra, new_store: Opening
) -> None:
    environment = {
        "AZURE_TENANT_ID": TENANT,
        "AZURE_CLIENT_ID": APPLICATION,
        "AZURE_CLIENT_SECRET": APPLICATION_SECRET,
    }
    with patch.dict(os.environ, environment):
        store = new_store(**dict.fromkeys(CREDENTIALS))
        store.create("key", VALUE)
    assert entra.seen("POST", "/token")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"endpoint": "my-vault.vault.azure.net"}, "is no URL"),
        ({"endpoint": "http://my-vault.vault.azure.net"}, "is to be https://HOST"),
        ({"endpoint": "https://my-vault.vault.azure.net/secrets"}, "is to be https://HOST"),
        ({"tls.ca": "/nowhere/ca.crt"}, r"tls\.ca '/nowhere/ca\.crt'"),
        ({"credentials.tenant_id": "my tenant"}, "look at 'credentials'.*Invalid tenant ID"),
        ({"authority": "http://login.microsoftonline.com"}, "look at 'credentials'.*invalid authority"),
    ],
)
def test_settings_that_cannot_be_used_are_told(new_store: Opening, changes: dict[str, str], words: str) -> None:
    with pytest.raises(KeyStoreError, match=words) as told:
        new_store(**changes)
    assert str(told.value).startswith(SERVICE)


def test_a_vault_that_hangs_holds_the_start_up_only_for_a_moment(new_store: Opening) -> None:
    released = threading.Event()
    with listening(lambda connection: released.wait(30)) as port, patch.object(azure, "START_SECONDS", 0.3):
        store = new_store(endpoint=f"https://127.0.0.1:{port}")
        begin = time.monotonic()
        assert "keys cannot be read now" in store.warnings()[-1]
        assert time.monotonic() - begin < 5
        released.set()


# --- a server ---


def test_a_server_runs_with_the_configuration_of_the_page(pair: Pair, tmp_path: Path) -> None:
    """As it stands there, with the names of the public cloud: a proxy leads them here."""
    ((language, block),) = BLOCK.findall(section(PAGE, "Configuration"))
    assert language == "yaml"
    ca, _ = pair.write(tmp_path, "ca")
    with (
        FakeEntra(pair) as entra,
        FakeVault(entra.tokens, pair, audience="https://vault.azure.net") as vault,
        ConnectProxy({"my-vault.vault.azure.net": vault.port, "login.microsoftonline.com": entra.port}) as proxy,
    ):
        vault.put("old-key", VALUE.decode())
        environment = {
            "AZURE_TENANT_ID": TENANT,
            "AZURE_CLIENT_ID": APPLICATION,
            "AZURE_CLIENT_SECRET": APPLICATION_SECRET,
            "HTTPS_PROXY": proxy.endpoint,
            "NO_PROXY": "127.0.0.1",
            "SSL_CERT_FILE": str(ca),
        }
        configured = yaml.safe_load(block)["keystore"]
        with start_server(tmp_path, environment=environment, keystore={"fs": None, **configured}) as server:
            assert "Azure KeyVault: https://my-vault.vault.azure.net" in server.stdout
            server.wait_for("has no call that creates only what is absent", stream="stderr")
            with server.client() as kes:
                data_key = kes.generate_key("old-key")
                assert kes.decrypt("old-key", data_key.ciphertext) == data_key.plaintext
                kes.create_key("new-key")
                assert sorted(kes.list_keys()) == ["new-key", "old-key"]
                kes.delete_key("old-key")
            assert "keys cannot be read now" not in server.stderr
        assert list(vault.secrets) == ["new-key"]
        assert not vault.bin
        assert set(proxy.hosts) == {"my-vault.vault.azure.net", "login.microsoftonline.com"}


def test_a_server_with_wrong_credentials_starts_and_says_so(
    vault: FakeVault, entra: FakeEntra, ca: str, tmp_path: Path
) -> None:
    keyvault = {
        "endpoint": vault.endpoint,
        "credentials": {"tenant_id": TENANT, "client_id": APPLICATION, "client_secret": "a-wrong-one"},
        "authority": entra.endpoint,
        "tls": {"ca": ca},
    }
    with start_server(tmp_path, keystore={"fs": None, "azure": {"keyvault": keyvault}}) as server:
        server.wait_for("keys cannot be read now: ", stream="stderr")
        assert "'credentials.client_secret' is wrong" in server.stderr
        assert "a-wrong-one" not in server.stderr + server.stdout
        assert "Traceback" not in server.stderr
