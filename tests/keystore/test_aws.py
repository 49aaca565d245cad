import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from keswick.client import KeyStoreFailed
from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, NotAKey, aws, http
from support.certificates import make
from support.connect_proxy import ConnectProxy
from support.fake_aws import FakeSecretsManager, policy_actions
from support.fault_proxy import FaultProxy
from support.fault_proxy import Request as Sent
from support.key_stores import use
from support.moto_server import CREDENTIALS, start_moto
from support.rest_service import Reply, Request, RestService
from support.server import start_server
from support.sockets import free_port, listening, read_request, until_closed
from support.store_page import DOCS, shown_keystore
from support.transport import wait_until

VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine, and no address outside of it."""
    for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_PROFILE", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(aws, "FREED_SECONDS", 0.0)


@pytest.fixture
def service() -> Iterator[FakeSecretsManager]:
    with FakeSecretsManager() as service:
        yield service


@pytest.fixture
def store(service: FakeSecretsManager) -> Iterator[KeyStore]:
    store = opened(service)
    yield store
    store.close()


def opened(service: FakeSecretsManager, **more: str) -> KeyStore:
    return aws.open({"endpoint": service.endpoint, "region": service.region, **service.credentials, **more})


# --- what is sent ---


def test_the_calls_are_those_of_the_original(service: FakeSecretsManager, store: KeyStore) -> None:
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    assert list(store.list("")) == ["key"]
    store.delete("key")
    (_, created), *others = service.calls
    assert len(created.pop("ClientRequestToken")) == 36
    assert created == {"Name": "key", "SecretString": VALUE.decode()}
    assert others == [
        ("GetSecretValue", {"SecretId": "key"}),
        ("ListSecrets", {"MaxResults": 100}),
        ("GetSecretValue", {"SecretId": "key"}),  # whether it is there
        ("DeleteSecret", {"SecretId": "key", "ForceDeleteWithoutRecovery": True}),
    ]


def test_the_page_names_the_rights_that_are_needed(service: FakeSecretsManager, store: KeyStore) -> None:
    test_the_calls_are_those_of_the_original(service, store)
    store.warnings()
    needed = {f"secretsmanager:{operation}" for operation, _ in service.calls}
    allowed = policy_actions((DOCS / "keystore-aws.md").read_text())
    assert allowed == needed | {"kms:Decrypt", "kms:GenerateDataKey"}


def test_the_kms_key_goes_to_secrets_manager(service: FakeSecretsManager) -> None:
    store = opened(service, kmskey="alias/kes")
    store.create("key", VALUE)
    assert service.calls[-1][1]["KmsKeyId"] == "alias/kes"
    store.close()


def test_the_token_of_a_session_is_sent(service: FakeSecretsManager) -> None:
    service.token = "session-token"
    store = opened(service)
    store.create("key", VALUE)
    assert service.seen("POST", "/")[-1].headers["X-Amz-Security-Token"] == "session-token"
    store.close()


def test_the_start_asks_without_credentials(service: FakeSecretsManager, store: KeyStore) -> None:
    (request,) = service.requests
    assert (request.method, request.target) == ("GET", "/")
    assert "Authorization" not in request.headers
    with service.instead(lambda request: Reply(503)):  # any answer will do
        opened(service).close()


def test_status_needs_credentials_but_no_right(service: FakeSecretsManager, store: KeyStore) -> None:
    assert store.status() > 0
    assert service.calls == [("ListSecrets", {"MaxResults": 1})]
    for code in ("AccessDeniedException", "ThrottlingException"):
        with service.refusing("ListSecrets", code):
            assert store.status() > 0
    for code in (
        "ExpiredTokenException",
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "MissingAuthenticationTokenException",
        "InternalServiceError",
    ):
        with service.refusing("ListSecrets", code), pytest.raises(KeyStoreError, match=code) as told:
            store.status()
        assert not isinstance(told.value, KeyStoreUnreachable)
    with service.instead(lambda request: Reply(503)), pytest.raises(KeyStoreUnreachable):
        store.status()
    assert store.status() > 0


# --- the start ---


def test_a_store_that_is_away_keeps_the_server_from_starting(service: FakeSecretsManager) -> None:
    service.stop()
    with pytest.raises(KeyStoreUnreachable, match=f"127.0.0.1:{service.port} cannot be reached"):
        opened(service)


@pytest.mark.parametrize("endpoint", ["https://", "ftp://host", "ho st", ""])
def test_a_malformed_endpoint_is_told(endpoint: str) -> None:
    with pytest.raises(KeyStoreError, match="write it as https://HOST:PORT"):
        aws.open({"endpoint": endpoint, "region": "eu-test-1", **CREDENTIALS})


def test_a_malformed_region_is_told(service: FakeSecretsManager) -> None:
    with pytest.raises(KeyStoreError, match="region"):
        aws.open({"endpoint": service.endpoint, "region": "eu test 1!", **service.credentials})


def test_a_token_alone_is_told(service: FakeSecretsManager) -> None:
    with pytest.raises(KeyStoreError, match=r"set 'credentials\.accesskey'"):
        aws.open({"endpoint": service.endpoint, "region": "eu-test-1", "credentials.token": "hush"})


def test_without_a_scheme_tls_is_spoken_with_whom_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = make("p256", name="authority", ca=True)
    ca, _ = authority.write(tmp_path, "ca")
    other, _ = make("p256", name="another", ca=True).write(tmp_path, "other")
    with FakeSecretsManager(make("p256", issuer=authority, sans=["127.0.0.1"], eku=["server"])) as service:
        settings = {"endpoint": f"127.0.0.1:{service.port}", "region": service.region, **service.credentials}
        for trusted in ("AWS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(trusted, str(ca))
            store = aws.open(settings)
            assert store.description == f"AWS SecretsManager: 127.0.0.1:{service.port}"
            store.create(trusted, VALUE)
            assert store.get(trusted) == VALUE
            store.close()
            monkeypatch.setenv(trusted, str(other))
            with pytest.raises(KeyStoreUnreachable, match=r"not trusted.* set 'AWS_CA_BUNDLE' to the authority"):
                aws.open(settings)
            monkeypatch.delenv(trusted)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "nowhere"))
        with pytest.raises(KeyStoreError, match=r"AWS_CA_BUNDLE '.*nowhere' cannot be used"):
            aws.open(settings)


def test_a_certificate_that_is_no_longer_trusted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = (make("p256", sans=["127.0.0.1"]) for _ in range(2))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(before.write(tmp_path)[0]))
    with FakeSecretsManager(before) as service:
        store = opened(service)
        service.stop()
        service._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        service._context.load_cert_chain(*after.write(tmp_path, "after"))
        service.start()
        with pytest.raises(KeyStoreUnreachable, match="set 'AWS_CA_BUNDLE'"):
            store.get("key")
        store.close()


# --- credentials ---


class Metadata(RestService):
    """Where a container, or a machine, gets its credentials."""

    def __init__(self, service: FakeSecretsManager) -> None:
        self.credentials = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "AccessKeyId": service.access_key,
            "SecretAccessKey": service.secret_key,
            "Token": service.token,
            "Expiration": "2099-01-01T00:00:00Z",
            "LastUpdated": "2020-01-01T00:00:00Z",
        }
        super().__init__()

    def handle(self, request: Request) -> Reply:
        match request.method, request.target:
            case "GET", "/container" if request.headers["Authorization"] == "of-the-pod":
                return Reply(200, self.credentials)
            case "PUT", "/latest/api/token":
                return Reply(200, b"token-of-the-machine", "text/plain")
            case "GET", "/latest/meta-data/iam/security-credentials/":
                return Reply(200, b"kes-role", "text/plain")
            case "GET", "/latest/meta-data/iam/security-credentials/kes-role":
                assert request.headers["x-aws-ec2-metadata-token"] == "token-of-the-machine"
                return Reply(200, self.credentials)
        return Reply(404)


def opened_by_itself(service: FakeSecretsManager) -> KeyStore:
    return aws.open({"endpoint": service.endpoint, "region": service.region})


def test_without_any_credentials_the_server_does_not_start(service: FakeSecretsManager) -> None:
    with pytest.raises(KeyStoreError, match=r"there are no credentials: set 'credentials\.accesskey'"):
        opened_by_itself(service)


def test_credentials_of_the_environment(service: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", service.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", service.secret_key)
    store = opened_by_itself(service)
    store.create("key", VALUE)
    service.secret_key = "another"
    with pytest.raises(KeyStoreError, match="look at the credentials of AWS's own way 'env'"):
        store.get("key")
    store.close()


def test_credentials_of_the_shared_file_but_not_of_the_shared_configuration(
    service: FakeSecretsManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"aws_access_key_id = {service.access_key}\naws_secret_access_key = {service.secret_key}\n"
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text(f"[default]\n{text}[profile of-config]\n{text}")
    with pytest.raises(KeyStoreError, match="there are no credentials"):
        opened_by_itself(service)
    (tmp_path / ".aws" / "credentials").write_text(f"[kes]\n{text}")
    monkeypatch.setenv("AWS_PROFILE", "kes")
    store = opened_by_itself(service)
    store.create("key", VALUE)
    store.close()
    monkeypatch.setenv("AWS_PROFILE", "of-config")
    with pytest.raises(KeyStoreError, match=r"profile.*of-config"):
        opened_by_itself(service)


@pytest.mark.parametrize("way", ["container-role", "iam-role"])
def test_credentials_of_a_container_and_of_a_machine(
    service: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    service.token = "token-of-the-role"
    with Metadata(service) as metadata:
        if way == "container-role":
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{metadata.endpoint}/container")
            monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of-the-pod")
        else:
            monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
            monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.endpoint)
        store = opened_by_itself(service)
        store.create("key", VALUE)
        service.expired = True
        with pytest.raises(KeyStoreError, match=f"renew the credentials of AWS's own way '{way}'"):
            store.get("key")
        store.close()


@pytest.mark.parametrize("why", ["gone", "over"])
def test_credentials_that_cannot_be_renewed_are_told(
    service: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    with Metadata(service) as metadata:
        metadata.credentials["Expiration"] = "2020-01-01T00:00:00Z"
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{metadata.endpoint}/container")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN", "of-the-pod")
        store = opened_by_itself(service)
        odd = Reply(404, {"message": "no role"}) if why == "gone" else None
        with (
            metadata.instead(lambda request: odd),
            pytest.raises(KeyStoreError, match="way 'container-role' cannot be had any more: ") as told,
        ):
            store.get("key")
        assert ("no role" if why == "gone" else "still expired") in str(told.value)
        store.close()


@pytest.mark.parametrize("way", ["hanging", "refusing"])
def test_who_gives_credentials_and_is_away_is_told_in_time(
    service: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    """As in EKS, where a token of the pod is exchanged for credentials."""
    monkeypatch.setattr(aws, "TRY_SECONDS", 0.2)
    token = tmp_path / "token"
    token.write_text("token-of-the-pod")
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/kes")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    with listening(until_closed) as port:
        port = port if way == "hanging" else free_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{port}")
        store = opened_by_itself(service)
        begin = time.monotonic()
        with pytest.raises(KeyStoreUnreachable, match=r"whoever gives the credentials of .*web-identity' cannot be"):
            store.get("key")
        assert time.monotonic() - begin < 12
        store.close()


def test_wrong_credentials_are_warned_of_at_the_start_and_told_with_every_call(service: FakeSecretsManager) -> None:
    store = opened(service)
    assert store.warnings() == []
    cases: list[tuple[dict[str, Any], str]] = [
        ({"access_key": "AKIAOTHER"}, r"does not know the access key: look at 'credentials\.accesskey'"),
        ({"secret_key": "another"}, r"do not belong together: look at .*'credentials\.secretkey'"),
        ({"region": "eu-test-2"}, "'region' and 'endpoint' have to name the same region"),
        ({"expired": True}, r"renew 'credentials\.accesskey'"),
    ]
    for change, words in cases:
        with pytest.MonkeyPatch.context() as changed:
            for name, value in change.items():
                changed.setattr(service, name, value)
            with pytest.raises(KeyStoreError, match=words) as told:
                store.create("key", VALUE)
            with pytest.raises(KeyStoreError, match=words):
                store.status()
            (warning,) = store.warnings()
        assert warning == str(told.value).replace("CreateSecret", "ListSecrets")
        assert service.secret_key not in warning
    store.create("key", VALUE)
    store.close()


# --- what AWS refuses ---

DENIED = "User: arn:aws:iam::123456789012:user/kes is not authorized to perform: secretsmanager:GetSecretValue"


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        ("AccessDeniedException", DENIED, "user/kes is not authorized.*: allow secretsmanager:GetSecretValue"),
        ("AccessDeniedException", "Access to KMS is not allowed", r"allow kms:Decrypt and kms:GenerateDataKey"),
        ("DecryptionFailure", "Secrets Manager can't decrypt the secret", r"look at the KMS key, 'kmskey'"),
        ("EncryptionFailure", "Secrets Manager can't encrypt the secret", r"look at the KMS key, 'kmskey'"),
        ("LimitExceededException", "You've exceeded the quota", "let AWS raise the quota"),
        ("ThrottlingException", "Rate exceeded", "try again later"),
        ("InvalidSignatureException", "Signature expired: 20200101T000000Z is now earlier", "set the clock"),
        ("InvalidSignatureException", "Signature not yet current", "set the clock"),
        ("InvalidRequestException", "It was marked for deletion.", "restore it"),
        ("ValidationException", f"'{VALUE.decode()}' failed to satisfy", r"GetSecretValue \(ValidationException\)"),
        ("InternalServiceError", "An error occurred on the server side.", "InternalServiceError"),
        ("SomethingNew", "line\nline\x1b[31m", r"line line\?\[31m"),
    ],
)
def test_a_refusal_says_what_to_do(
    service: FakeSecretsManager, store: KeyStore, code: str, message: str, words: str
) -> None:
    with service.refusing("GetSecretValue", code, message), pytest.raises(KeyStoreError, match=words) as told:
        store.get("key")
    assert not isinstance(told.value, KeyStoreUnreachable)
    assert code in str(told.value)
    assert "8f58O260" not in str(told.value)


def test_what_is_throttled_or_in_trouble_is_tried_three_times(service: FakeSecretsManager, store: KeyStore) -> None:
    for code, status, kind in [
        ("ThrottlingException", 400, KeyStoreError),
        ("InternalServiceError", 500, KeyStoreError),
        ("ServiceUnavailable", 503, KeyStoreUnreachable),
    ]:
        before = len(service.calls)
        with service.refusing("GetSecretValue", code, status=status), pytest.raises(kind):
            store.get("key")
        assert len(service.calls) == before + 3


# --- create ---


def test_a_name_is_taken_while_its_secret_is_being_deleted(
    service: FakeSecretsManager, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "FREED_SECONDS", 10.0)
    service.times_to_leave = 2
    store.create("key", VALUE)
    store.delete("key")
    store.create("key", b"another")
    assert store.get("key") == b"another"


def test_a_name_of_a_secret_that_may_be_restored_stays_taken(service: FakeSecretsManager, store: KeyStore) -> None:
    service.leaving["key"] = 1 << 30
    with pytest.raises(KeyStoreError, match=r"already scheduled for deletion.*the name stays taken until"):
        store.create("key", VALUE)
    with pytest.raises(KeyStoreError, match=r"marked for deletion.*restore it"):
        store.get("key")
    assert list(store.list("")) == []
    store.delete("key")  # for good
    assert service.calls[-1][0] == "DeleteSecret"


def test_a_create_whose_answer_was_lost_succeeds(service: FakeSecretsManager, store: KeyStore) -> None:
    with service.losing("POST"):
        store.create("key", VALUE)
    first, second, read = service.calls
    assert first == second  # with the same token, so that AWS knows it again
    assert read == ("GetSecretValue", {"SecretId": "key"})


def test_a_create_that_was_overtaken_fails(service: FakeSecretsManager, store: KeyStore) -> None:
    with (
        service.losing("POST", then=lambda: service.secrets.update(key="of another")),
        pytest.raises(KeyExists),
    ):
        store.create("key", VALUE)
    with service.losing("POST", then=lambda: service.secrets.update(key=None)), pytest.raises(KeyStoreError):
        store.create("key", VALUE)


@pytest.mark.parametrize("name", ["arn:aws:secretsmanager:eu-test-1:1:secret:other-AbCdEf", "a b", "ä", "", "x" * 256])
def test_what_cannot_be_the_name_of_a_secret_never_reaches_aws(
    service: FakeSecretsManager, store: KeyStore, name: str
) -> None:
    with pytest.raises(KeyStoreError, match="cannot be the name of a secret"):
        store.create(name, VALUE)
    with pytest.raises(KeyNotFound):
        store.get(name)
    with pytest.raises(KeyNotFound):
        store.delete(name)
    assert service.calls == []


def test_a_value_that_is_no_text_is_refused(service: FakeSecretsManager, store: KeyStore) -> None:
    with pytest.raises(KeyStoreError, match="no text") as told:
        store.create("key", b"\xff\xfe-secret")
    assert "-secret" not in str(told.value)
    assert service.calls == []


# --- get, delete, list ---


def test_bytes_are_read_too(service: FakeSecretsManager, store: KeyStore) -> None:
    service.secrets |= {"key": VALUE, "foreign": bytes(range(256)), "text": "grüße"}
    assert store.get("key") == VALUE
    assert store.get("foreign") == bytes(range(256))
    assert store.get("text") == "grüße".encode()


def test_a_secret_without_a_value_is_told_and_can_be_deleted(service: FakeSecretsManager, store: KeyStore) -> None:
    service.secrets["foreign"] = None
    with pytest.raises(NotAKey, match="it has no value: move it away"):
        store.get("foreign")
    with pytest.raises(KeyExists):
        store.create("foreign", VALUE)
    store.delete("foreign")
    assert service.secrets == {}


@pytest.mark.parametrize(
    ("code", "message"), [("DecryptionFailure", "no"), ("AccessDeniedException", "Access to KMS is not allowed")]
)
def test_a_key_that_cannot_be_decrypted_can_be_deleted(
    service: FakeSecretsManager, store: KeyStore, code: str, message: str
) -> None:
    service.secrets["key"] = VALUE.decode()
    with service.refusing("GetSecretValue", code, message):
        store.delete("key")
    assert service.secrets == {}


def test_what_cannot_be_looked_at_is_not_deleted(service: FakeSecretsManager, store: KeyStore) -> None:
    """AWS would call it a success whether it is there or not."""
    with (
        service.refusing("GetSecretValue", "AccessDeniedException", DENIED),
        pytest.raises(KeyStoreError, match="allow secretsmanager:GetSecretValue"),
    ):
        store.delete("key")
    with pytest.raises(KeyNotFound):
        store.delete("key")
    assert "DeleteSecret" not in [operation for operation, _ in service.calls]


def test_a_delete_that_is_denied_is_told(service: FakeSecretsManager, store: KeyStore) -> None:
    service.secrets["key"] = VALUE.decode()
    with (
        service.refusing("DeleteSecret", "AccessDeniedException", "no"),
        pytest.raises(KeyStoreError, match="allow secretsmanager:DeleteSecret"),
    ):
        store.delete("key")


def test_a_list_of_several_pages_leaves_out_what_is_no_key(service: FakeSecretsManager, store: KeyStore) -> None:
    names = [f"key-{number:03}" for number in range(50)]
    service.secrets |= dict.fromkeys([*names, "KEY-1", "app/password", "x" * 300, "other", "k@e.y"], "value")
    assert sorted(store.list("key-")) == names
    filters = [asked["Filters"] for operation, asked in service.calls if operation == "ListSecrets"]
    assert filters == [[{"Key": "name", "Values": ["key-"]}]] * 3
    assert sorted(store.list("")) == sorted([*names, "KEY-1", "other", "k@e.y"])
    assert sorted(store.list("!key")) == []
    assert "Filters" not in service.calls[-1][1]


def test_a_list_that_never_ends_is_told(service: FakeSecretsManager, store: KeyStore) -> None:
    def endless(request: Request) -> Reply:
        following = {"a": "b", "b": "a"}.get(request.json.get("NextToken"), "a")
        return Reply(200, {"SecretList": [{"Name": "key"}], "NextToken": following})

    with service.instead(endless), pytest.raises(KeyStoreError, match="none of Secrets Manager's answers"):
        store.list("")


def test_an_answer_about_another_secret_is_told(service: FakeSecretsManager, store: KeyStore) -> None:
    other = Reply(200, {"Name": "other", "SecretString": "value"})
    with service.instead(lambda request: other):
        for call in (lambda: store.get("key"), lambda: store.create("key", VALUE)):
            with pytest.raises(KeyStoreError, match="none of Secrets Manager's answers"):
                call()


@pytest.mark.parametrize("body", [b'"text"', b"[1]", b"null", b"\xff", b'{"__type":{},"SecretList":7}'])
@pytest.mark.parametrize("status", [200, 400])
def test_an_answer_that_no_aws_gives_is_told(
    service: FakeSecretsManager, store: KeyStore, status: int, body: bytes
) -> None:
    """By each call, and by the warnings that a server waits for when it starts."""
    with service.instead(lambda request: Reply(status, body)):
        assert store.warnings()
        for call in CALLS.values():
            with pytest.raises(KeyStoreError):
                call(store)


# --- connections ---


def test_connections_are_used_again(service: FakeSecretsManager, store: KeyStore) -> None:
    service.secrets["key"] = VALUE.decode()
    for _ in range(5):
        store.get("key")
        store.status()
    assert service.connections == 1
    begin = threading.Barrier(32)

    def get(number: int) -> bytes:
        begin.wait(30)
        return [store.get("key") for _ in range(4)][-1]

    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(get, range(32))) == {VALUE}
    assert service.connections <= 32


CALLS: dict[str, Callable[[KeyStore], object]] = {
    "get": lambda store: store.get("key"),
    "create": lambda store: store.create("new", VALUE),
    "delete": lambda store: store.delete("key"),
    "list": lambda store: store.list(""),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_answer_that_trickles_in_ends_in_time(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(http, "CALL_SECONDS", 1.0)
    monkeypatch.setattr(aws, "TRY_SECONDS", 0.8)

    def script(connection: socket.socket) -> None:
        while request := read_request(connection):
            connection.sendall(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n" + b"\r\n" * request.startswith(b"GET")
            )
            while request.startswith(b"POST"):
                connection.sendall(b"X-More: x\r\n")
                time.sleep(0.02)

    with listening(script) as port:
        store = aws.open({"endpoint": f"http://127.0.0.1:{port}", "region": "eu-test-1", **CREDENTIALS})
        begin = time.monotonic()
        with pytest.raises(KeyStoreUnreachable, match="did not answer in time"):
            CALLS[call](store)
        assert time.monotonic() - begin < 8
        store.close()


def test_all_that_one_call_asks_shares_its_time(service: FakeSecretsManager, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion looks first; the one who waits for it has gone when each takes its time."""
    monkeypatch.setattr(http, "CALL_SECONDS", 2.0)
    monkeypatch.setattr(aws, "TRY_SECONDS", 1.9)
    service.secrets["key"] = VALUE.decode()
    with FaultProxy(service.port) as proxy:
        service.endpoint = proxy.endpoint
        store = opened(service)

        def choose(request: Sent) -> str | None:
            if "GetSecretValue" in request.headers["x-amz-target"]:
                time.sleep(1.5)
                return None
            return "hanging"

        with proxy.fault("hanging"):  # until the end of this block
            proxy.choose = choose
            begin = time.monotonic()
            with pytest.raises(KeyStoreUnreachable, match="did not answer in time"):
                store.delete("key")
            assert time.monotonic() - begin < 5
        store.close()


def test_the_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make("p256", sans=["aws.example"])
    monkeypatch.setenv("AWS_CA_BUNDLE", str(pair.write(tmp_path)[0]))
    with FakeSecretsManager(pair) as service, ConnectProxy({"aws.example": service.port}) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.endpoint.replace("//", "//kes:pw@"))
        service.endpoint = "https://aws.example"
        store = opened(service)
        store.create("key", VALUE)
        assert store.get("key") == VALUE
        assert proxy.hosts == ["aws.example"]
        store.close()


def test_close_ends_all_connections(service: FakeSecretsManager, store: KeyStore) -> None:
    with suppress(KeyNotFound):
        store.get("key")
    store.close()
    wait_until(lambda: not service._open)
    with pytest.raises(KeyStoreError, match="is closed"):
        store.get("key")


def test_a_service_that_was_restarted_is_no_outage(service: FakeSecretsManager, store: KeyStore) -> None:
    store.create("key", VALUE)
    service.restart()
    assert store.get("key") == VALUE
    assert store.status() > 0


def test_nothing_shows_a_secret(service: FakeSecretsManager) -> None:
    service.token = "token-hush"
    store = opened(service)
    shown = repr(store) + repr(vars(store))
    assert service.secret_key not in shown
    assert service.token not in shown
    store.close()


# --- a server ---


def test_a_server_runs_with_what_the_page_shows(tmp_path: Path) -> None:
    pair = make("p256", sans=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate, key = pair.write(tmp_path, "aws")
    context.load_cert_chain(certificate, key)
    keystore = shown_keystore("keystore-aws.md")
    section = keystore["aws"]["secretsmanager"]
    environment = {
        "AWS_ACCESS_KEY_ID": CREDENTIALS["credentials.accesskey"],
        "AWS_SECRET_ACCESS_KEY": CREDENTIALS["credentials.secretkey"],
        "AWS_CA_BUNDLE": str(certificate),
    }
    with start_moto() as port, FaultProxy(port, tls=context) as proxy:
        section["endpoint"] = f"127.0.0.1:{proxy.port}"
        with start_server(tmp_path / "server", keystore=keystore, environment=environment) as server:
            assert f"AWS SecretsManager: 127.0.0.1:{proxy.port}" in server.stdout
            use(server)
            assert server.stderr == ""
            assert server.stop() == 0
        created = "secretsmanager.CreateSecret"
        sent = [json.loads(sent.body) for sent in proxy.recorded if sent.headers.get("x-amz-target") == created]
        assert [(asked["Name"], asked["KmsKeyId"]) for asked in sent] == [
            ("my-key", "alias/kes"),
            ("another", "alias/kes"),
        ]
        assert not any(CREDENTIALS["credentials.secretkey"] in text for text in (server.stdout, server.stderr))


def test_a_server_whose_credentials_are_over_says_so_and_keeps_its_cached_keys(
    service: FakeSecretsManager, tmp_path: Path
) -> None:
    login = {"accesskey": service.access_key, "secretkey": service.secret_key}
    section = {"endpoint": service.endpoint, "region": service.region, "credentials": login}
    expiry = {"any": "1s", "unused": "1s", "offline": "1h"}
    with (
        start_server(
            tmp_path, keystore={"fs": None, "aws": {"secretsmanager": section}}, cache={"expiry": expiry}
        ) as server,
        server.client() as client,
    ):
        client.create_key("my-key")
        client.ready()
        client.generate_key("my-key")
        service.expired = True
        server.wait_for("the key store is unavailable", stream="stderr")
        with pytest.raises(KeyStoreFailed):
            client.ready()
        assert client.generate_key("my-key").plaintext  # only the offline expiry holds it
        service.expired = False
        wait_until(lambda: "the key store is back" in server.stderr)
        client.ready()
