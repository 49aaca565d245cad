import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from google.cloud import secretmanager_v1 as types

from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, gcp, http
from keswick.keystore.memory import MemoryStore
from keswick.migration import Migration
from support.certificates import make
from support.drongo_server import start_drongo
from support.fault_proxy import FaultProxy
from support.fault_proxy import Request as Sent
from support.key_stores import use
from support.rest_service import Reply, Request, RestService
from support.secret_manager import SecretManager
from support.server import SOURCES, start_server
from support.sockets import listening, read_request
from support.store_page import DOCS, shown_keystore

VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'
PROJECT = "my-project"
PARENT = f"projects/{PROJECT}"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine, and no address outside of it."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.setattr(http, "pause_seconds", lambda: 0.15)  # the channel waits for 0.1 before it connects anew


@pytest.fixture(scope="module")
def one_google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretManager]:
    with SecretManager(tmp_path_factory.mktemp("google")) as google:
        yield google


@pytest.fixture
def google(one_google: SecretManager) -> SecretManager:
    one_google.forget()
    return one_google


@pytest.fixture
def store(google: SecretManager) -> Iterator[KeyStore]:
    store = opened(google)
    yield store
    store.close()


def opened(google: SecretManager, **more: str) -> KeyStore:
    with google.trusted():
        return gcp.open({"endpoint": google.endpoint, "project_id": PROJECT, **google.credentials, **more})


# --- what is sent ---


def test_the_calls_are_those_of_the_original(google: SecretManager, store: KeyStore) -> None:
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    assert list(store.list("")) == ["key"]
    store.delete("key")
    secret: dict[str, Any] = {"replication": {"automatic": {}}}
    assert google.calls == [
        ("CreateSecret", types.CreateSecretRequest(parent=PARENT, secret_id="key", secret=secret)),
        ("AddSecretVersion", types.AddSecretVersionRequest(parent=f"{PARENT}/secrets/key", payload={"data": VALUE})),
        ("AccessSecretVersion", types.AccessSecretVersionRequest(name=f"{PARENT}/secrets/key/versions/1")),
        ("ListSecrets", types.ListSecretsRequest(parent=PARENT)),
        ("DeleteSecret", types.DeleteSecretRequest(name=f"{PARENT}/secrets/key")),
    ]


def test_the_account_of_the_file_signs_its_calls_itself(google: SecretManager) -> None:
    for scopes in ("", "https://www.googleapis.com/auth/cloud-platform https://example.com/other"):
        store = opened(google, **({"scopes": scopes} if scopes else {}))
        store.create("with-scopes" if scopes else "without", VALUE)
        token = google.tokens[-1]
        assert token["iss"] == token["sub"] == google.credentials["credentials.client_email"]
        assert token.get("scope", "") == scopes
        assert bool(scopes) or token["aud"] == "https://secretmanager.googleapis.com/"
        store.close()


def test_the_page_names_the_permissions_that_are_needed(google: SecretManager, store: KeyStore) -> None:
    test_the_calls_are_those_of_the_original(google, store)
    page = (DOCS / "keystore-gcp.md").read_text()
    named = set(re.findall(r"`(secretmanager\.[a-z]+\.[a-z]+)`", page))
    assert named == set(gcp._RIGHTS.values())
    called = {re.sub("(?<!^)([A-Z])", r"_\1", method).lower() for method, _ in google.calls}
    assert called == set(gcp._RIGHTS)


# --- create, in two steps ---


def test_a_secret_that_a_crash_left_without_a_version_can_be_created(google: SecretManager, store: KeyStore) -> None:
    google.add(PROJECT, "key")
    assert list(store.list("")) == ["key"]
    with pytest.raises(KeyNotFound):
        store.get("key")
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    with pytest.raises(KeyExists):
        store.create("key", b"another")
    assert google.versions(PROJECT, "key") == [VALUE]
    google.add(PROJECT, "other")
    store.delete("other")
    assert list(store.list("")) == ["key"]


@pytest.mark.parametrize("begun", [False, True])
def test_of_two_creators_the_one_with_version_1_wins(google: SecretManager, store: KeyStore, begun: bool) -> None:
    if begun:
        google.add(PROJECT, "key")
    with opened_twice(google) as other:

        def overtake(method: str) -> None:
            if method == "AddSecretVersion":
                google.before = lambda method: None
                other.create("key", b"of the other")

        google.before = overtake
        with pytest.raises(KeyExists):
            store.create("key", VALUE)
        assert store.get("key") == other.get("key") == b"of the other"
        assert google.versions(PROJECT, "key") == [b"of the other", VALUE]


@contextmanager
def opened_twice(google: SecretManager) -> Iterator[KeyStore]:
    other = opened(google)
    try:
        yield other
    finally:
        other.close()


def test_the_same_value_of_another_creator_is_not_taken_for_its_own(google: SecretManager, store: KeyStore) -> None:
    google.add(PROJECT, "key")
    google.before = lambda method: google.add(PROJECT, "key", VALUE) if method == "AddSecretVersion" else None
    with pytest.raises(KeyExists):
        store.create("key", VALUE)


def test_a_secret_without_a_version_is_left_where_it_is_when_keys_are_moved(
    google: SecretManager, store: KeyStore
) -> None:
    store.create("key", VALUE)
    google.add(PROJECT, "begun")
    report = Migration(store, MemoryStore()).run()
    assert report.complete
    assert (report.migrated, [*report.foreign]) == (1, ["begun"])


def test_a_secret_that_is_deleted_between_the_steps_is_an_error(google: SecretManager, store: KeyStore) -> None:
    google.before = lambda method: google.forget() if method == "AddSecretVersion" else None
    with pytest.raises(KeyStoreError, match=r"refused add_secret_version \(404: Secret .* not found"):
        store.create("key", VALUE)


@pytest.mark.parametrize("method", ["CreateSecret", "AddSecretVersion", "DeleteSecret", "AccessSecretVersion"])
def test_an_answer_that_was_lost_is_not_a_failure(google: SecretManager, store: KeyStore, method: str) -> None:
    lost: list[str] = []

    def lose_the_first(called: str) -> None:
        google.active = None
        if called == method and not lost:
            lost.append(called)
            google.active = "lost"

    google.before = lose_the_first
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    store.delete("key")
    assert lost == [method]
    assert list(store.list("")) == []


def test_what_was_aborted_is_tried_again(google: SecretManager, store: KeyStore) -> None:
    with google.fault("aborted"), pytest.raises(KeyStoreError, match="409: The secret was changed concurrently"):
        store.get("key")
    assert [method for method, _ in google.calls] == ["AccessSecretVersion"] * 3


def test_a_create_that_was_lost_and_overtaken_fails(google: SecretManager, store: KeyStore) -> None:
    def lose_the_first(called: str) -> None:
        if called == "AddSecretVersion":
            google.before = lambda method: setattr(google, "active", None)
            google.add(PROJECT, "key", b"of the other")
            google.active = "lost"

    google.before = lose_the_first
    with pytest.raises(KeyExists):
        store.create("key", VALUE)
    assert store.get("key") == b"of the other"


# --- get, delete, list ---


def test_later_versions_mean_nothing(google: SecretManager, store: KeyStore) -> None:
    store.create("key", VALUE)
    google.versions(PROJECT, "key").append(b"edited by hand")
    assert store.get("key") == VALUE


def test_a_key_that_was_destroyed_is_told_and_keeps_its_name(google: SecretManager, store: KeyStore) -> None:
    store.create("key", VALUE)
    google.versions(PROJECT, "key")[0] = None
    with pytest.raises(KeyStoreError, match=r"DESTROYED state.*enable version 1"):
        store.get("key")
    with pytest.raises(KeyExists):
        store.create("key", VALUE)
    store.delete("key")
    store.create("key", VALUE)


@pytest.mark.parametrize("name", ["a.b", "a b", "ä", "", "a/versions/2", "..", "x" * 256])
def test_what_cannot_be_the_name_of_a_secret_never_reaches_google(
    google: SecretManager, store: KeyStore, name: str
) -> None:
    with pytest.raises(KeyStoreError, match="cannot be the name of a secret"):
        store.create(name, VALUE)
    with pytest.raises(KeyNotFound):
        store.get(name)
    with pytest.raises(KeyNotFound):
        store.delete(name)
    assert google.calls == []


def test_a_list_of_several_pages_is_complete(google: SecretManager, store: KeyStore) -> None:
    names = [f"key-{number:03}" for number in range(250)]
    for name in [*names, "other", "Key-1"]:
        google.add(PROJECT, name, VALUE)
    assert sorted(store.list("key-")) == names
    assert sorted(store.list("")) == sorted([*names, "other", "Key-1"])
    assert [call.page_token for _, call in google.calls[:3]] == ["", "100", "200"]


ODD: dict[str, tuple[Any, Callable[[KeyStore], object]]] = {
    "AccessSecretVersion": (
        types.AccessSecretVersionResponse(name=f"{PARENT}/secrets/other/versions/1", payload={"data": VALUE}),
        lambda store: store.get("key"),
    ),
    "CreateSecret": (types.Secret(name=f"{PARENT}/secrets/other"), lambda store: store.create("key", VALUE)),
    "AddSecretVersion": (types.SecretVersion(name="something"), lambda store: store.create("key", VALUE)),
    "ListSecrets": (types.ListSecretsResponse(next_page_token="again"), lambda store: store.list("")),
}


@pytest.mark.parametrize("method", ODD)
def test_an_answer_to_another_question_is_told(google: SecretManager, store: KeyStore, method: str) -> None:
    answer, call = ODD[method]
    google.instead[method] = answer
    with pytest.raises(KeyStoreError, match="answered with what Secret Manager does not") as told:
        call(store)
    assert "8f58O260" not in str(told.value)


# --- what Google refuses ---


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("denied", r"\(403: Permission denied.*\): allow secretmanager\.versions\.access for the service account"),
        ("throttled", r"\(429: Quota exceeded.*let Google raise the quota"),
        ("expired", r"\(401: .*look at the service account 'credentials\.client_email'"),
        ("troubled", r"\(500: Internal error"),
        ("garbage", r"\(500: Exception deserializing response"),
    ],
)
def test_a_refusal_says_what_to_do(google: SecretManager, store: KeyStore, fault: str, words: str) -> None:
    with google.fault(fault), pytest.raises(KeyStoreError, match=words) as told:
        store.get("key")
    assert not isinstance(told.value, KeyStoreUnreachable)


def test_status_needs_credentials_but_no_right(google: SecretManager, store: KeyStore) -> None:
    assert store.status() > 0
    assert [(method, asked.page_size) for method, asked in google.calls] == [("ListSecrets", 1)]
    for fault in ("denied", "throttled"):
        with google.fault(fault):
            assert store.status() > 0
    with google.fault("expired"), pytest.raises(KeyStoreError, match=r"\(401: .*look at the service account") as told:
        store.status()
    assert not isinstance(told.value, KeyStoreUnreachable)
    with google.fault("away"), pytest.raises(KeyStoreUnreachable):
        store.status()
    assert store.status() > 0


def test_wrong_credentials_are_warned_of_at_the_start(google: SecretManager, store: KeyStore) -> None:
    assert store.warnings() == []
    key = make("rsa2048").key_pem.decode()
    while key == google.credentials["credentials.private_key"].replace("\\n", "\n"):
        key = make("rsa2048").key_pem.decode()
    wrong = opened(google, **{"credentials.private_key": key})
    (warning,) = wrong.warnings()
    assert "refused list_secrets (401: " in warning
    assert "look at the service account 'credentials.client_email'" in warning
    with pytest.raises(KeyStoreError, match=r"refused list_secrets \(401: "):
        wrong.status()
    wrong.close()


class Refusing(RestService):
    """Google over REST, which refuses with what `instead` was told."""

    def handle(self, request: Request) -> Reply:
        return Reply(404, b"<html>", "text/html")


@pytest.mark.parametrize(
    ("status", "code", "message", "words"),
    [
        (
            403,
            "PERMISSION_DENIED",
            "Denied",
            r"\(403: Denied\): allow secretmanager\.secrets\.list for the service acc",
        ),
        (
            401,
            "UNAUTHENTICATED",
            "Invalid",
            r"\(401: Invalid\): look at the service account 'credentials\.client_email'",
        ),
        (404, "NOT_FOUND", "Project not found", r"\(404: Project not found\): look at 'project_id'"),
        (429, "RESOURCE_EXHAUSTED", "Quota exceeded", r"\(429: Quota exceeded\): .*let Google raise the quota"),
        (400, "INVALID_ARGUMENT", "line\nline\x1b[31m", r"\(400: line line\?\[31m\)$"),
        (500, "INTERNAL", "Internal error", r"\(500: Internal error\)"),
        (503, "UNAVAILABLE", "Come again", r"is not available now \(503: Come again\)"),
    ],
)
def test_a_refusal_over_rest_says_the_same(
    google: SecretManager,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    code: str,
    message: str,
    words: str,
) -> None:
    pair = make("p256", sans=["127.0.0.1"])
    monkeypatch.setenv("SSL_CERT_FILE", str(pair.write(tmp_path)[0]))
    with Refusing(pair) as service:
        store = gcp.open({"endpoint": service.endpoint, "project_id": PROJECT, **google.credentials})
        reply = Reply(status, {"error": {"code": status, "status": code, "message": message}})
        with service.instead(lambda request: reply), pytest.raises(KeyStoreError, match=words):
            store.list("")
        store.close()


# --- the start ---


def test_a_store_that_is_away_keeps_the_server_from_starting(google: SecretManager) -> None:
    with google.fault("refused"), pytest.raises(KeyStoreUnreachable, match=f"{google.endpoint} cannot be reached"):
        opened(google)


@pytest.mark.parametrize("endpoint", ["https://", "ftp://host", "ho st:443", ""])
def test_a_malformed_endpoint_is_told(endpoint: str) -> None:
    with pytest.raises(KeyStoreError, match="write it as https://HOST:PORT"):
        gcp.open({"endpoint": endpoint, "project_id": PROJECT})


@pytest.mark.parametrize("project", ["a/b", "", "a b", "../x"])
def test_a_malformed_project_is_told(project: str) -> None:
    with pytest.raises(KeyStoreError, match="'project_id'"):
        gcp.open({"endpoint": "127.0.0.1:1", "project_id": project})


@pytest.mark.parametrize("key", ["hush", "-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n", "\\n"])
def test_a_malformed_private_key_is_told_but_not_shown(google: SecretManager, key: str) -> None:
    with pytest.raises(KeyStoreError, match=r"'credentials\.private_key' is no private key in PEM form") as told:
        opened(google, **{"credentials.private_key": key})
    assert "hush" not in str(told.value)
    assert told.value.__suppress_context__


def test_the_private_key_may_have_its_line_breaks(google: SecretManager) -> None:
    key = google.credentials["credentials.private_key"]
    assert "\n" not in key
    store = opened(google, **{"credentials.private_key": key.replace("\\n", "\n")})
    assert list(store.list("")) == []
    store.close()


def test_who_is_not_trusted_keeps_the_server_from_starting(
    google: SecretManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"project_id": PROJECT, **google.credentials}
    other, _ = make("p256", name="another", ca=True).write(tmp_path, "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    for endpoint in (google.endpoint, f"https://{google.endpoint}"):
        with pytest.raises(KeyStoreUnreachable, match=r"not trusted.* set 'SSL_CERT_FILE' to the authority"):
            gcp.open({"endpoint": endpoint, **settings})


def test_a_certificate_that_is_no_longer_trusted_is_told(
    google: SecretManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start of both ways sees it at once; here, that the calls check it, too."""
    call = http.HttpService.call

    def call_later(self: http.HttpService, method: str, path: str, **options: Any) -> Any:
        return None if (method, path) == ("GET", "/") else call(self, method, path, **options)

    monkeypatch.setattr(http.HttpService, "call", call_later)
    other, _ = make("p256", name="another", ca=True).write(tmp_path, "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(other))
    for endpoint, words in ((google.endpoint, "CERTIFICATE_VERIFY_FAILED"), (f"https://{google.endpoint}", "SSL_CERT")):
        store = gcp.open({"endpoint": endpoint, "project_id": PROJECT, **google.credentials})
        with pytest.raises(KeyStoreUnreachable, match=words):
            store.get("key")
        store.close()
    assert google.calls == []


# --- REST ---


def test_over_rest_with_tls_the_account_signs_its_calls_too(
    google: SecretManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make("p256", sans=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = pair.write(tmp_path)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with start_drongo() as port, FaultProxy(port, tls=context) as proxy:
        store = gcp.open({"endpoint": proxy.endpoint, "project_id": PROJECT, **google.credentials})
        store.create("key", VALUE)
        assert store.get("key") == VALUE
        store.close()
        asked, *calls = proxy.recorded
        assert (asked.method, asked.path, "authorization" in asked.headers) == ("GET", "/", False)
        assert [(call.method, call.path.partition("?")[0]) for call in calls] == [
            ("POST", f"/v1/{PARENT}/secrets"),
            ("POST", f"/v1/{PARENT}/secrets/key:addVersion"),
            ("GET", f"/v1/{PARENT}/secrets/key/versions/1:access"),
        ]
        for call in calls:
            google.check_token(call.headers["authorization"])
        assert json.loads(calls[0].body) == {"replication": {"automatic": {}}}


def test_without_tls_nobody_is_shown_credentials(google: SecretManager) -> None:
    with start_drongo() as port, FaultProxy(port) as proxy:
        store = gcp.open({"endpoint": proxy.endpoint, "project_id": PROJECT, **google.credentials})
        store.create("key", VALUE)
        store.close()
        assert len(proxy.recorded) == 3
        assert not any("authorization" in call.headers for call in proxy.recorded)


def test_a_redirection_over_rest_is_told_and_not_followed() -> None:
    """A token, and a key, would go where nobody was told to trust."""
    with Refusing() as service, Refusing() as elsewhere:
        store = gcp.open({"endpoint": service.endpoint, "project_id": PROJECT})
        moved = Reply(307, headers={"Location": f"{elsewhere.endpoint}/x"})
        for call in (lambda: store.create("key", VALUE), lambda: store.delete("key"), lambda: store.list("")):
            with (
                service.instead(lambda request: moved),
                pytest.raises(KeyStoreError, match=r"answered 307 Temporary Redirect, but not as Secret Manager does"),
            ):
                call()
        assert elsewhere.requests == []
        store.close()


def test_an_answer_over_rest_that_trickles_in_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "CALL_SECONDS", 1.0)
    monkeypatch.setattr(gcp, "TRY_SECONDS", 0.4)

    def script(connection: socket.socket) -> None:
        while request := read_request(connection):
            begins = request.startswith(b"GET / ")
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n" + b"\r\n" * begins)
            while not begins:
                connection.sendall(b"X-More: x\r\n")
                time.sleep(0.02)

    with listening(script) as port:
        store = gcp.open({"endpoint": f"http://127.0.0.1:{port}", "project_id": PROJECT})
        begin = time.monotonic()
        with pytest.raises(KeyStoreUnreachable, match="did not answer in time"):
            store.get("key")
        assert time.monotonic() - begin < 8
        store.close()


@pytest.mark.parametrize("body", [b'"text"', b"[1]", b"7", b"\xff", b'{"error":7}', b"<html>"])
@pytest.mark.parametrize("status", [200, 204, 400])
def test_an_answer_over_rest_that_google_does_not_give_is_told(status: int, body: bytes) -> None:
    """By each call, and by the warnings that a server waits for when it starts."""
    with Refusing() as service:
        store = gcp.open({"endpoint": service.endpoint, "project_id": PROJECT})
        with service.instead(lambda request: Reply(status, body)):
            assert store.warnings()
            for call in (store.get, store.delete, store.list, lambda name: store.create(name, VALUE)):
                with pytest.raises(KeyStoreError):
                    call("key")
        store.close()


def test_a_list_over_rest_that_never_ends_is_told() -> None:
    def endless(request: Request) -> Reply:
        following = {"a": "b", "b": "a"}.get(request.query.get("pageToken", ""), "a")
        return Reply(200, {"secrets": [{"name": f"{PARENT}/secrets/key"}], "nextPageToken": following})

    with Refusing() as service:
        store = gcp.open({"endpoint": service.endpoint, "project_id": PROJECT})
        with service.instead(endless), pytest.raises(KeyStoreError, match="answered with what Secret Manager does not"):
            store.list("")
        store.close()


def test_the_steps_of_a_create_share_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who waits for it has gone when each takes its time."""
    monkeypatch.setattr(http, "CALL_SECONDS", 2.0)
    with start_drongo() as port, FaultProxy(port) as proxy:
        store = gcp.open({"endpoint": proxy.endpoint, "project_id": PROJECT})

        def choose(request: Sent) -> str | None:
            if not request.path.startswith(f"/v1/{PARENT}/secrets?"):
                return "hanging"
            time.sleep(1.8)
            return None

        with proxy.fault("hanging"):  # until the end of this block
            proxy.choose = choose
            begin = time.monotonic()
            with pytest.raises(KeyStoreUnreachable, match="did not answer in time"):
                store.create("key", VALUE)
            assert time.monotonic() - begin < 3.5
        store.close()


@pytest.mark.parametrize("base", ["", "/base", "/a%20b/c/"])
def test_the_path_of_an_endpoint_comes_before_that_of_the_call(base: str) -> None:
    with Refusing() as service:
        store = gcp.open({"endpoint": service.endpoint + base, "project_id": PROJECT})
        store.warnings()
        path = base.rstrip("/")
        assert [request.target.partition("?")[0] for request in service.requests] == [
            f"{path}/",
            f"{path}/v1/{PARENT}/secrets",
        ]
        store.close()


# --- other credentials ---

OPEN_AND_USE = """
import json, sys
from keswick.keystore import KeyStoreError, gcp
try:
    store = gcp.open(json.loads(sys.argv[1]))
    store.create("key", b"the value")
    print(store.get("key").decode())
except KeyStoreError as error:
    print(type(error).__name__, error)
"""


def opened_by_itself(google: SecretManager, endpoint: str = "", **environment: str) -> str:
    """What a process prints that opens a store without credentials in the file, and uses it. Google's library looks at
    the environment when it is imported."""
    settings = {"endpoint": endpoint or google.endpoint, "project_id": PROJECT}
    with google.trusted():
        done = subprocess.run(
            [sys.executable, "-c", OPEN_AND_USE, json.dumps(settings)],
            env={**os.environ, "PYTHONPATH": SOURCES, "GCE_METADATA_TIMEOUT": "1", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert done.stderr == ""
    return done.stdout.strip()


def test_without_any_credentials_the_server_does_not_start(google: SecretManager) -> None:
    told = opened_by_itself(google, NO_GCE_CHECK="true")
    assert "KeyStoreError" in told
    assert "there are no application default credentials: set 'credentials', or GOOGLE_APPLICATION_CREDENTIALS" in told


def test_an_account_of_a_file_that_the_environment_names(google: SecretManager, tmp_path: Path) -> None:
    account = {name.partition(".")[2]: value for name, value in google.credentials.items()}
    account["private_key"] = account["private_key"].replace("\\n", "\n")
    file = tmp_path / "account.json"
    file.write_text(json.dumps({"type": "service_account", "token_uri": "https://127.0.0.1:1/token", **account}))
    assert opened_by_itself(google, GOOGLE_APPLICATION_CREDENTIALS=str(file)) == "the value"


class Metadata(RestService):
    """Tells a machine of Google's who it is."""

    token = Reply(200, {"access_token": "of-the-machine", "expires_in": 3600, "token_type": "Bearer"})

    def handle(self, request: Request) -> Reply:
        assert request.headers["Metadata-Flavor"] == "Google"
        body: Any = b""
        match request.segments:
            case ("computeMetadata", "v1", "instance", "service-accounts", _, "token"):
                return self.token
            case ("computeMetadata", "v1", "instance", "service-accounts", _, ""):
                body = {"email": "kes@my-project.iam.gserviceaccount.com", "scopes": [], "aliases": ["default"]}
            case ("computeMetadata", "v1", "project", "project-id"):
                body = PROJECT.encode()
        kind = "text/plain" if isinstance(body, bytes) else "application/json"
        return Reply(200, body, kind, {"Metadata-Flavor": "Google"})

    @property
    def environment(self) -> dict[str, str]:
        return dict.fromkeys(("GCE_METADATA_HOST", "GCE_METADATA_ROOT", "GCE_METADATA_IP"), f"127.0.0.1:{self.port}")


def test_the_account_of_a_machine(google: SecretManager) -> None:
    google.access_tokens.add("of-the-machine")
    with Metadata() as metadata:
        assert opened_by_itself(google, **metadata.environment) == "the value"


@pytest.mark.parametrize("scheme", ["", "https://"])
def test_an_account_that_gets_no_token_is_told(google: SecretManager, scheme: str) -> None:
    with Metadata() as metadata:
        metadata.token = Reply(404, b"the account was deleted", "text/plain")
        told = opened_by_itself(google, f"{scheme}{google.endpoint}", **metadata.environment)
        assert "KeyStoreError" in told
        assert "there is no access token for the application default credentials" in told
        assert "404" in told


# --- connections ---


def test_one_connection_serves_all_threads(google: SecretManager, store: KeyStore) -> None:
    store.create("key", VALUE)
    before = google.front.connections
    assert read_by_32_threads(store) == {VALUE}
    assert google.front.connections == before


def test_over_rest_connections_are_used_again() -> None:
    with start_drongo() as port, FaultProxy(port) as proxy:
        store = gcp.open({"endpoint": proxy.endpoint, "project_id": PROJECT})
        store.create("key", VALUE)
        for _ in range(5):
            store.get("key")
        assert proxy.connections == 1
        assert read_by_32_threads(store) == {VALUE}
        assert proxy.connections <= 32
        store.close()


def read_by_32_threads(store: KeyStore) -> set[bytes]:
    begin = threading.Barrier(32)

    def get(number: int) -> bytes:
        begin.wait(30)
        return [store.get("key") for _ in range(4)][-1]

    with ThreadPoolExecutor(32) as pool:
        return set(pool.map(get, range(32)))


def test_nothing_shows_a_secret(google: SecretManager, store: KeyStore) -> None:
    shown = repr(store) + repr(vars(store))
    assert google.credentials["credentials.private_key"][100:130] not in shown


# --- a server ---


def test_a_server_runs_with_what_the_page_shows(google: SecretManager, tmp_path: Path) -> None:
    keystore = shown_keystore("keystore-gcp.md")
    section = keystore["gcp"]["secretmanager"]
    section["endpoint"] = google.endpoint
    environment = {
        "SSL_CERT_FILE": str(google.ca_file),
        "SSL_CERT_DIR": "",
        "GCP_PRIVATE_KEY_ID": google.credentials["credentials.private_key_id"],
        "GCP_PRIVATE_KEY": google.credentials["credentials.private_key"],
    }
    with start_server(tmp_path / "server", keystore=keystore, environment=environment) as server:
        assert f"GCP SecretManager: Project={PROJECT}" in server.stdout
        use(server)
        assert server.stderr == ""
        assert server.stop() == 0
    assert len(google.versions(PROJECT, "my-key")) == 1
