"""What is special about OpenBao and HashiCorp Vault. The server is a real OpenBao."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

import keswick.client
from keswick.keystore import (
    KeyExists,
    KeyNotFound,
    KeyStore,
    KeyStoreError,
    KeyStoreUnreachable,
    NotAKey,
    http,
    vault,
    vault_session,
)
from support.certificates import make
from support.fault_proxy import FaultProxy, Request
from support.key_stores import use
from support.kubernetes import FakeKubernetes
from support.openbao import PROGRAM, OpenBao, key_rights, settings, transit_rights
from support.server import start_server
from support.store_page import DOCS, shown_keystore
from support.transport import wait_until
from support.walker import BLOCK, Walker, shell_blocks
from support.walker import section as page_section

PAGE = DOCS / "keystore-vault.md"

OLDEST = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'
OLD = (
    b'{"version":"v1","bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0=","algorithm":"AES256-GCM_SHA256",'
    b'"created_at":"2026-11-22T02:21:15.16737262Z","created_by":"11a5"}'
)
NEW = b"CiQKIOAR" + b"A" * 196 + b"+/=="
VALUES = (OLDEST, OLD, NEW)
"""As the original wrote them, in three generations."""

_engines = count()


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("bao")) as bao:
        bao.enable_transit()
        yield bao


@pytest.fixture
def proxy(bao: OpenBao) -> Iterator[FaultProxy]:
    with FaultProxy(bao.plain_port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    with patch.object(http, "pause_seconds", lambda: 0.02), patch.object(vault_session, "RETRY_SECONDS", 0.2):
        yield


def section_for(bao: OpenBao, version: int, *, namespace: str = "", **options: Any) -> dict[str, Any]:
    """Of a new and empty engine."""
    engine = f"kv-{next(_engines)}"
    bao.enable_kv(engine, version, namespace=namespace)
    return bao.configuration(engine, version, namespace=namespace, plain=True, **options)


@contextmanager
def opened(section: dict[str, Any], **changes: Any) -> Iterator[KeyStore]:
    store = vault.open(settings({**section, **changes}))
    try:
        yield store
    finally:
        store.close()


def path_of(section: dict[str, Any], name: str = "", kind: str = "data") -> str:
    parts = (section["engine"], kind if section["version"] == "v2" else "", section.get("prefix", ""), name)
    return "/".join(part for part in parts if part)


def put(bao: OpenBao, section: dict[str, Any], name: str, value: Any) -> None:
    """A secret as the original wrote it, from outside."""
    body: Any = {name: value}
    if section["version"] == "v2":
        body = {"data": body, "options": {"cas": 0}}
    bao.call("PUT", path_of(section, name), body, namespace=section.get("namespace", ""))


def shown(requests: list[Request]) -> list[tuple[str, str, Any]]:
    return [(request.method, request.path, json.loads(request.body) if request.body else None) for request in requests]


def logins(proxy: FaultProxy) -> int:
    return sum(path.endswith("/login") for _, path in proxy.requests)


# --- the requests, and what lies in the engine ---


def test_the_requests_are_those_of_the_original_v1(bao: OpenBao, proxy: FaultProxy) -> None:
    section = section_for(bao, 1, prefix="kes/keys")
    engine, role = section["engine"], section["approle"]
    with opened(section, endpoint=proxy.endpoint) as store:
        login = {"role_id": role["id"], "secret_id": role["secret"]}
        health = f"/v1/{vault_session.HEALTH}"
        assert health.endswith(
            "?drsecondarycode=299&performancestandbycode=299&sealedcode=299&standbycode=299&uninitcode=299"
        )
        assert shown(proxy.recorded)[:2] == [("GET", health, None), ("PUT", "/v1/auth/approle/login", login)]
        proxy.recorded.clear()
        assert list(store.list("")) == []
        store.create("my-key", OLDEST)
        assert store.get("my-key") == OLDEST
        store.delete("my-key")
        path = f"/v1/{engine}/kes/keys/my-key"
        assert shown(proxy.recorded) == [
            ("GET", f"/v1/{engine}/kes/keys?list=true", None),
            ("GET", path, None),
            ("PUT", path, {"my-key": OLDEST.decode()}),
            ("GET", path, None),  # is it still there?
            ("GET", path, None),
            ("GET", path, None),
            ("DELETE", path, None),
        ]
        assert {request.headers["x-vault-request"] for request in proxy.recorded} == {"true"}
        assert len({request.headers["x-vault-token"] for request in proxy.recorded}) == 1
        assert not any("x-vault-namespace" in request.headers for request in proxy.recorded)


def test_the_requests_are_those_of_the_original_v2(bao: OpenBao, proxy: FaultProxy) -> None:
    section = section_for(bao, 2)
    engine = section["engine"]
    with opened(section, endpoint=proxy.endpoint) as store:
        proxy.recorded.clear()
        store.create("my-key", NEW)
        assert store.get("my-key") == NEW
        assert list(store.list("")) == ["my-key"]
        store.delete("my-key")
        path = f"/v1/{engine}/data/my-key"
        assert shown(proxy.recorded) == [
            ("GET", f"{path}?version=1", None),
            ("PUT", path, {"data": {"my-key": NEW.decode()}, "options": {"cas": 0}}),
            ("GET", f"{path}?version=1", None),
            ("GET", f"/v1/{engine}/metadata?list=true", None),
            ("GET", f"{path}?version=1", None),
            ("DELETE", f"/v1/{engine}/metadata/my-key", None),
        ]


def test_the_requests_of_transit_are_those_of_the_original(bao: OpenBao, proxy: FaultProxy) -> None:
    section = section_for(bao, 1, transit="kes")
    with opened(section, endpoint=proxy.endpoint) as store:
        proxy.recorded.clear()
        store.create("my-key", NEW)
        assert store.get("my-key") == NEW
        encrypt, look, write, _, read, decrypt = shown(proxy.recorded)
        assert encrypt == ("POST", "/v1/transit/encrypt/kes", {"plaintext": base64.b64encode(NEW).decode()})
        text = write[2]["my-key"]
        assert text.startswith("vault:v1:")
        assert decrypt == ("POST", "/v1/transit/decrypt/kes", {"ciphertext": text})
        assert (look[0], read[0]) == ("GET", "GET")
        assert bao.call("GET", path_of(section, "my-key"))["data"] == {"my-key": text}


@pytest.mark.parametrize("version", [1, 2])
def test_what_the_original_wrote_is_read(bao: OpenBao, version: int) -> None:
    section = section_for(bao, version, prefix="kes")
    with opened(section) as store:
        for number, value in enumerate(VALUES):
            put(bao, section, f"key-{number}", value.decode())
            assert store.get(f"key-{number}") == value
        assert sorted(store.list("")) == ["key-0", "key-1", "key-2"]


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_written_is_what_the_original_reads(bao: OpenBao, version: int) -> None:
    section = section_for(bao, version)
    with opened(section) as store:
        store.create("my-key", NEW)
    data = bao.call("GET", path_of(section, "my-key"))["data"]
    assert (data if version == 1 else data["data"]) == {"my-key": NEW.decode()}


@pytest.mark.parametrize("name", ["my key", "a.b", "ключ", "a%2Fb", "x?y=1#z", "a+b", "*", "..a", " x "])
def test_names_of_before_2022_are_found(bao: OpenBao, name: str) -> None:
    section = section_for(bao, 2)
    with opened(section) as store:
        store.create(name, OLDEST)
        assert list(store.list("")) == [name]
        assert store.get(name) == OLDEST
        store.delete(name)
        with pytest.raises(KeyNotFound):
            store.get(name)


def test_names_that_the_server_cannot_keep_are_not_there(bao: OpenBao) -> None:
    with opened(section_for(bao, 1)) as store:
        for name in ("a\tb", "a\x7f", "\u200b"):
            for call in (store.get, store.delete):
                with pytest.raises(KeyNotFound):
                    call(name)
            with pytest.raises(KeyStoreError, match="do not print"):
                store.create(name, OLDEST)


@pytest.mark.parametrize("version", [1, 2])
def test_folders_and_foreign_names_are_left_out_of_a_list(bao: OpenBao, version: int) -> None:
    section = section_for(bao, version)
    put(bao, section, "my-key", "x")
    for path in ("folder/deep", "my-key/below"):
        put(bao, section, path, "x")
    with opened(section) as store:
        assert list(store.list("")) == ["my-key"]
    with opened(section, prefix="nothing") as store:
        assert list(store.list("")) == []


def test_connections_are_used_again(bao: OpenBao, proxy: FaultProxy) -> None:
    with opened(section_for(bao, 2), endpoint=proxy.endpoint) as store:
        for number in range(20):
            store.create(f"key-{number}", OLDEST)
        assert proxy.connections == 1
        with ThreadPoolExecutor(64) as pool:
            assert set(pool.map(store.get, [f"key-{number % 20}" for number in range(640)])) == {OLDEST}
        assert proxy.connections <= 32


# --- what is no key ---


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("secret", [{"value": "hush"}, {"my-key": 7}, {"my-key": {"a": "hush"}}, {"my-key": None}])
def test_a_foreign_secret_is_named_and_left_alone(bao: OpenBao, version: int, secret: dict[str, Any]) -> None:
    section = section_for(bao, version)
    bao.call("PUT", path_of(section, "my-key"), {"data": secret} if version == 2 else secret)
    with opened(section) as store:
        calls: list[Callable[[], object]] = [
            lambda: store.get("my-key"),
            lambda: store.delete("my-key"),
            lambda: store.create("my-key", OLDEST),
        ]
        for call in calls:
            with pytest.raises(NotAKey, match=f"'{path_of(section, 'my-key')}' is no key.*move it away") as told:
                call()
            assert "hush" not in str(told.value)
    data = bao.call("GET", path_of(section, "my-key"))["data"]
    assert (data if version == 1 else data["data"]) == secret


def test_a_value_that_is_no_text_is_refused_without_transit(bao: OpenBao) -> None:
    with opened(section_for(bao, 2)) as store, pytest.raises(KeyStoreError, match="no text") as told:
        store.create("my-key", b"\xff\xfe secret")
    assert "secret'" not in str(told.value)


def test_a_deleted_secret_is_no_key_and_not_lost(bao: OpenBao) -> None:
    """It can still be restored, so nothing takes its place until somebody deletes it for good."""
    section = section_for(bao, 2)
    with opened(section) as store:
        store.create("my-key", OLDEST)
        bao.call("DELETE", path_of(section, "my-key"))
        with pytest.raises(KeyNotFound):
            store.get("my-key")
        with pytest.raises(KeyStoreError, match=r"was deleted: restore it.*kes key rm"):
            store.create("my-key", NEW)
        bao.call("PUT", path_of(section, "my-key", "undelete"), {"versions": [1]})
        assert store.get("my-key") == OLDEST
        bao.call("DELETE", path_of(section, "my-key"))
        store.delete("my-key")
        with pytest.raises(KeyNotFound):
            store.delete("my-key")
        store.create("my-key", NEW)
        assert store.get("my-key") == NEW


def test_the_first_version_is_the_key(bao: OpenBao) -> None:
    section = section_for(bao, 2)
    path = path_of(section, "my-key")
    with opened(section) as store:
        store.create("my-key", OLDEST)
        bao.call("PUT", path, {"data": {"my-key": "edited by hand"}})
        assert store.get("my-key") == OLDEST
        bao.call("DELETE", path)  # of the second one
        assert store.get("my-key") == OLDEST
        with pytest.raises(KeyExists):
            store.create("my-key", NEW)
        bao.call("PUT", path_of(section, "my-key", "destroy"), {"versions": [1]})
        with pytest.raises(KeyNotFound):
            store.get("my-key")
        with pytest.raises(KeyStoreError, match="kes key rm"):
            store.create("my-key", NEW)


def test_a_secret_whose_first_version_was_pushed_out_is_told(bao: OpenBao) -> None:
    section = section_for(bao, 2, rights={"*": ("create", "read", "update", "list", "delete")})
    bao.call("PUT", f"{section['engine']}/config", {"max_versions": 2})
    with opened(section) as store:
        store.create("my-key", OLDEST)
        for _ in range(3):
            bao.call("PUT", path_of(section, "my-key"), {"data": {"my-key": "edited by hand"}})
        with pytest.raises(KeyStoreError, match=r"not the first one.*metadata delete"):
            store.create("my-key", NEW)


def test_an_engine_that_would_forget_a_key_is_told(bao: OpenBao) -> None:
    section = section_for(bao, 2)
    bao.call("PUT", f"{section['engine']}/config", {"delete_version_after": "1h"})
    with opened(section) as store:
        with pytest.raises(KeyStoreError, match="'delete_version_after' to 0"):
            store.create("my-key", OLDEST)
        bao.call("PUT", f"{section['engine']}/config", {"delete_version_after": "-1s"})
        store.delete("my-key")
        store.create("my-key", OLDEST)


# --- create ---


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("update", [False, True])
def test_of_creators_in_one_server_exactly_one_wins(bao: OpenBao, version: int, update: bool) -> None:
    section = section_for(bao, version, rights={"*": ("create", "read", "list", *(("update",) if update else ()))})
    with opened(section) as store:
        assert_one_wins([store])


def test_of_creators_in_several_servers_exactly_one_wins_v2(bao: OpenBao) -> None:
    section = section_for(bao, 2)
    with opened(section) as one, opened(section) as two:
        for number in range(10):
            assert_one_wins([one, two], f"key-{number}")


def assert_one_wins(stores: list[KeyStore], name: str = "my-key") -> None:
    threads = 16
    start = threading.Barrier(threads)

    def create(number: int) -> bool:
        start.wait()
        try:
            stores[number % len(stores)].create(name, f"value {number}".encode())
        except KeyExists:
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        won = list(pool.map(create, range(threads)))
    assert won.count(True) == 1
    assert stores[0].get(name) == f"value {won.index(True)}".encode()


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("update", [False, True])
def test_a_creator_that_comes_second_is_told_so(bao: OpenBao, proxy: FaultProxy, version: int, update: bool) -> None:
    """Another server creates the key between the look and the write. Only a policy that lets secrets be replaced, on an
    engine of version 1, leaves that open."""
    section = section_for(bao, version, rights={"*": ("create", "read", *(("update",) if update else ()))})

    def meanwhile(request: Request) -> None:
        if request.method == "PUT" and request.path.endswith("my-key"):
            put(bao, section, "my-key", "theirs")

    with opened(section, endpoint=proxy.endpoint) as store:
        proxy.choose = meanwhile
        if version == 1 and update:
            store.create("my-key", b"mine")
            assert store.get("my-key") == b"mine"
            return
        with pytest.raises(KeyExists):
            store.create("my-key", b"mine")
        assert store.get("my-key") == b"theirs"


def then_at_the_second_read(section: dict[str, Any], act: Callable[[], str | None]) -> Callable[[Request], str | None]:
    """That is, after the key was written."""
    reads = count()

    def choose(request: Request) -> str | None:
        looks = request.method == "GET" and request.path.endswith(path_of(section, "my-key"))
        return act() if looks and next(reads) else None

    return choose


def test_a_creator_whose_key_is_replaced_at_once_is_told_so_v1(bao: OpenBao, proxy: FaultProxy) -> None:
    section = section_for(bao, 1, rights={"*": ("create", "read", "update")})
    with opened(section, endpoint=proxy.endpoint) as store:
        proxy.choose = then_at_the_second_read(section, lambda: put(bao, section, "my-key", "theirs"))
        with pytest.raises(KeyExists):
            store.create("my-key", b"mine")
        assert store.get("my-key") == b"theirs"
        bao.call("DELETE", path_of(section, "my-key"))
        foreign = {"value": "hush"}
        proxy.choose = then_at_the_second_read(
            section, lambda: bao.call("PUT", path_of(section, "my-key"), foreign) and None
        )
        with pytest.raises(NotAKey):
            store.create("my-key", b"mine")


@pytest.mark.parametrize("fault", ["denied", "troubled", "cut"])
def test_a_key_that_cannot_be_read_back_was_created_v1(bao: OpenBao, proxy: FaultProxy, fault: str) -> None:
    section = section_for(bao, 1)
    with opened(section, endpoint=proxy.endpoint) as store:
        proxy.choose = then_at_the_second_read(section, lambda: fault)
        store.create("my-key", OLDEST)
        proxy.choose = lambda request: None
        assert store.get("my-key") == OLDEST


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("fault", ["lost", "troubled", "cut"])
def test_a_create_whose_answer_was_lost_knows_its_own_key(
    bao: OpenBao, proxy: FaultProxy, version: int, fault: str
) -> None:
    section = section_for(bao, version)
    writes = count()

    def first_write(request: Request) -> str | None:
        return fault if request.method == "PUT" and not next(writes) else None

    with opened(section, endpoint=proxy.endpoint) as store:
        proxy.choose = first_write
        store.create("my-key", OLDEST)
        assert store.get("my-key") == OLDEST
        with pytest.raises(KeyExists):
            store.create("my-key", OLDEST)


@pytest.mark.parametrize("version", [1, 2])
def test_a_create_whose_answer_was_lost_does_not_take_the_key_of_another(
    bao: OpenBao, proxy: FaultProxy, version: int
) -> None:
    section = section_for(bao, version, rights={"*": ("create", "read", "update")})

    def meanwhile(request: Request) -> str | None:
        if request.method != "PUT":
            return None
        put(bao, section, "my-key", "theirs")
        return "troubled"

    with opened(section, endpoint=proxy.endpoint) as store:
        proxy.choose = meanwhile
        with pytest.raises(KeyExists):
            store.create("my-key", b"mine")
        assert store.get("my-key") == b"theirs"


def test_what_version_1_cannot_do_is_said_at_the_start(bao: OpenBao) -> None:
    section = section_for(bao, 1)
    with opened(section) as store:
        assert not store.atomic_create
        (warning,) = store.warnings()
        assert "have no lock. Use an engine of version 2" in warning
    section = section_for(bao, 1, rights={"*": ("create", "read", "update", "list", "delete")})
    with opened(section) as store:
        (warning,) = store.warnings()
        assert "Take 'update' out of it" in warning
    with opened(section_for(bao, 2)) as store:
        assert store.atomic_create
        assert list(store.warnings()) == []
    with opened(section_for(bao, 2), endpoint=f"http://127.1:{bao.plain_port}") as store:
        (warning,) = store.warnings()
        assert "in the clear" in warning


# --- policies, and settings that do not fit ---


@pytest.mark.parametrize(
    ("version", "rights", "call", "capability", "path"),
    [
        (1, {"{}/*": ("read", "list")}, "create", "create", "{}/kes/my-key"),
        (1, {"{}/*": ("create", "list")}, "get", "read", "{}/kes/my-key"),
        (1, {"{}/*": ("create", "read")}, "list", "list", "{}/kes"),
        (1, {"{}/*": ("create", "read")}, "delete", "delete", "{}/kes/old"),
        (2, {"{}/data/*": ("read",)}, "create", "create", "{}/data/kes/my-key"),
        (2, {"{}/metadata/*": ("list",)}, "get", "read", "{}/data/kes/my-key"),
        (2, {"{}/data/*": ("create", "read")}, "list", "list", "{}/metadata/kes"),
        (2, {"{}/data/*": ("create", "read", "delete")}, "delete", "delete", "{}/metadata/kes/old"),
    ],
)
def test_what_a_policy_lacks_is_named(
    bao: OpenBao,
    proxy: FaultProxy,
    version: int,
    rights: dict[str, tuple[str, ...]],
    call: str,
    capability: str,
    path: str,
) -> None:
    section = section_for(bao, version, prefix="kes", rights={})
    engine = section["engine"]
    section = bao.configuration(
        engine, version, prefix="kes", rights={key.format(engine): given for key, given in rights.items()}
    )
    put(bao, section, "old", "x")
    with opened(section, endpoint=proxy.endpoint) as store:
        calls: dict[str, Callable[[], object]] = {
            "create": lambda: store.create("my-key", OLDEST),
            "get": lambda: store.get("my-key"),
            "list": lambda: store.list(""),
            "delete": lambda: store.delete("old"),
        }
        for _ in range(3):
            with pytest.raises(KeyStoreError) as told:
                calls[call]()
            assert not isinstance(told.value, KeyStoreUnreachable)
            assert f"grant '{capability}' for the path '{path.format(engine)}'" in str(told.value)
        assert logins(proxy) == 1


def test_a_login_that_may_do_nothing_is_warned_of(bao: OpenBao) -> None:
    section = section_for(bao, 2, rights={"elsewhere/*": ("read",)})
    with opened(section) as store:
        assert any("grants anything in the engine" in warning for warning in store.warnings())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "v1"}, "is of version 2: set 'version' to 'v2'"),
        ({"engine": "transit"}, "is of the type 'transit'"),
        ({"engine": "{}/kes"}, "the engine is at '{}/'"),
        ({"namespace": "nowhere"}, "namespace not found.*'approle.namespace'"),
        ({"namespace": "a\nb"}, "'namespace' can have only printable"),
        ({"endpoint": "127.0.0.1:8200"}, "https://HOST:PORT"),
        ({"approle": {"id": "unknown", "secret": "hush"}}, "invalid role or secret ID.*'approle.secret'"),
        ({"approle": {"id": "unknown", "secret": "hush", "engine": "other"}}, "'auth/other'.*permission denied"),
    ],
)
def test_settings_that_do_not_fit_are_told_at_the_start(bao: OpenBao, change: dict[str, Any], words: str) -> None:
    section = section_for(bao, 2, rights={"*": ("create", "read", "list", "delete")})
    engine = section["engine"]
    section |= {key: text.format(engine) if isinstance(text, str) else text for key, text in change.items()}
    with pytest.raises(KeyStoreError, match=words.format(engine)) as told:
        vault.open(settings(section))
    assert not isinstance(told.value, KeyStoreUnreachable)
    assert "hush" not in str(told.value)


def test_an_engine_of_version_1_is_not_taken_for_one_of_version_2(bao: OpenBao) -> None:
    section = section_for(bao, 1)
    with pytest.raises(KeyStoreError, match=r"is of version 1: set 'version' to 'v1'"):
        vault.open(settings({**section, "version": "v2"}))


@pytest.mark.parametrize("version", [1, 2])
def test_an_engine_that_goes_away_is_no_engine_without_keys(bao: OpenBao, version: int) -> None:
    section = section_for(bao, version, rights={"*": ("create", "read", "list", "delete")})
    with opened(section) as store:
        store.create("my-key", OLDEST)
        bao.call("DELETE", f"sys/mounts/{section['engine']}")
        calls: list[Callable[[], object]] = [
            lambda: store.get("my-key"),
            lambda: store.delete("my-key"),
            lambda: store.list(""),
            lambda: store.create("new", OLDEST),
        ]
        for call in calls:
            with pytest.raises(KeyStoreError, match=r"no handler for route.*look at 'engine'"):
                call()


# --- logging in, and staying so ---


def test_a_token_is_renewed(bao: OpenBao, proxy: FaultProxy) -> None:
    with opened(section_for(bao, 2, token_ttl="1s", token_max_ttl="1h"), endpoint=proxy.endpoint) as store:
        wait_until(lambda: proxy.requests.count(("PUT", "/v1/auth/token/renew-self")) >= 2)
        store.create("my-key", OLDEST)
        assert logins(proxy) == 1


@pytest.mark.parametrize("role", [{"token_max_ttl": "4s"}, {"token_type": "batch"}], ids=["renewable", "batch"])
def test_a_token_that_nears_its_end_is_replaced_in_time(bao: OpenBao, proxy: FaultProxy, role: dict[str, Any]) -> None:
    section = section_for(bao, 2, token_ttl="3s", **role)
    with patch.object(vault_session, "RENEW_AT", 0.3), opened(section, endpoint=proxy.endpoint) as store:
        store.create("my-key", OLDEST)
        deadline = time.monotonic() + 20
        while logins(proxy) < 2:
            assert time.monotonic() < deadline
            assert store.get("my-key") == OLDEST
        assert ("GET", "/v1/auth/token/lookup-self") not in proxy.requests  # no call was ever refused


def test_a_token_with_few_uses_is_replaced(bao: OpenBao, proxy: FaultProxy) -> None:
    with opened(section_for(bao, 2, token_num_uses=6), endpoint=proxy.endpoint) as store:
        store.create("my-key", OLDEST)
        for _ in range(20):
            assert store.get("my-key") == OLDEST
        assert 2 <= logins(proxy) <= 12


def test_a_token_without_an_end_is_not_renewed() -> None:
    answer = http.Answer(
        200, {}, b'{"auth":{"client_token":"t","lease_duration":0,"renewable":false,"policies":["root"]}}', False
    )
    token = vault_session._token(answer, 0.0)
    assert token is not None
    assert token.renew_at == float("inf")
    assert not token.expired


@pytest.mark.parametrize("default_policy", [True, False])
def test_a_revoked_token_is_replaced_once(bao: OpenBao, proxy: FaultProxy, default_policy: bool) -> None:
    """Without the policy `default`, a token may not ask whether it is valid. Then a new one is got for a call that is
    refused, but not time and again."""
    section = section_for(bao, 2, token_no_default_policy=not default_policy)
    with opened(section, endpoint=proxy.endpoint) as store, patch.object(vault_session, "UNSURE_SECONDS", 0.0):
        store.create("my-key", OLDEST)
        revoke(bao, proxy)
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(store.get, ["my-key"] * 16)) == {OLDEST}
        assert logins(proxy) == 2
        assert store.status() > 0


def test_a_policy_that_denies_is_no_reason_to_log_in_again_and_again(bao: OpenBao, proxy: FaultProxy) -> None:
    section = section_for(bao, 2, rights={"*": ("read",)}, token_no_default_policy=True)
    with opened(section, endpoint=proxy.endpoint) as store:
        for _ in range(5):
            with pytest.raises(KeyStoreError, match=r"grant 'create'"):
                store.create("my-key", OLDEST)
        assert logins(proxy) == 1


def revoke(bao: OpenBao, proxy: FaultProxy) -> None:
    """The token that was used last."""
    token = next(r.headers["x-vault-token"] for r in reversed(proxy.recorded) if "x-vault-token" in r.headers)
    bao.call("PUT", "auth/token/revoke", {"token": token})


def test_credentials_that_became_wrong_are_told_and_not_tried_until_the_role_is_locked(
    bao: OpenBao, proxy: FaultProxy
) -> None:
    section = section_for(bao, 2)
    role_path = f"auth/approle/role/{bao.call('LIST', 'auth/approle/role')['data']['keys'][-1]}"
    secret = "a secret of my own choice"
    bao.call("PUT", f"{role_path}/custom-secret-id", {"secret_id": secret})
    section["approle"] = {"id": bao.call("GET", f"{role_path}/role-id")["data"]["role_id"], "secret": secret}
    rights = key_rights(section["engine"], 2)
    bao.write_policy(role_path.rpartition("/")[2], rights)
    with patch.object(vault_session, "WRONG_SECRET_SECONDS", 1.0), opened(section, endpoint=proxy.endpoint) as store:
        store.create("my-key", OLDEST)
        bao.call("PUT", f"{role_path}/secret-id/destroy", {"secret_id": secret})
        revoke(bao, proxy)
        for _ in range(10):
            with pytest.raises(KeyStoreError, match="invalid role or secret ID") as told:
                store.get("my-key")
            assert secret not in str(told.value)
        with pytest.raises(KeyStoreError, match="invalid role or secret ID"):
            store.status()
        assert logins(proxy) == 2
        bao.call("PUT", f"{role_path}/custom-secret-id", {"secret_id": secret})
        wait_until(lambda: logins(proxy) == 3)  # by itself
        assert store.get("my-key") == OLDEST
        assert store.status() > 0


def test_a_close_ends_the_token_and_the_thread(bao: OpenBao, proxy: FaultProxy) -> None:
    with opened(section_for(bao, 2), endpoint=proxy.endpoint) as store:
        store.list("")
        keeper = vars(vars(store)["_session"])["_keeper"]
        assert keeper.is_alive()
        token = proxy.recorded[-1].headers["x-vault-token"]
        assert bao.request("GET", "auth/token/lookup-self", token=token).status == 200
        store.close()
        with pytest.raises(KeyStoreError, match="closed"):
            store.list("")
        wait_until(lambda: not keeper.is_alive())
        assert bao.request("GET", "auth/token/lookup-self", token=token).status == 403


def test_a_login_that_hangs_holds_up_no_call_beyond_its_time(bao: OpenBao, proxy: FaultProxy) -> None:
    with opened(section_for(bao, 2), endpoint=proxy.endpoint) as store, patch.object(http, "CALL_SECONDS", 1.0):
        store.create("my-key", OLDEST)
        revoke(bao, proxy)
        proxy.choose = lambda request: "hanging" if request.path.endswith("/login") else None
        begin = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(store.get, "my-key") for _ in range(8)]
            for call in calls:
                with pytest.raises(KeyStoreUnreachable):
                    call.result()
        assert time.monotonic() - begin < 5  # one after the other, it would be 8
        proxy.choose = lambda request: None
        assert store.get("my-key") == OLDEST


def test_no_secret_is_in_a_repr(bao: OpenBao, proxy: FaultProxy) -> None:
    section = section_for(bao, 2)
    with opened(section, endpoint=proxy.endpoint) as store:
        store.list("")
        token = proxy.recorded[-1].headers["x-vault-token"]
        everything = repr([vars(store), vars(vars(store)["_session"])])
        assert token not in everything
        assert section["approle"]["secret"] not in everything


# --- Kubernetes ---


def test_kubernetes_reads_its_token_at_each_login(bao: OpenBao, proxy: FaultProxy, tmp_path: Path) -> None:
    section = section_for(bao, 2)
    engine = section["engine"]
    del section["approle"]
    bao.write_policy("kes-kubernetes", key_rights(engine, 2))
    file = tmp_path / "token"
    with FakeKubernetes(tmp_path) as kubernetes:
        bao.enable_kubernetes(kubernetes, "kes", "kes-account", ["kes-kubernetes"], token_ttl="1h")
        first, second = kubernetes.token("kes-account"), kubernetes.token("kes-account")
        file.write_text(first + "\n")
        with opened(section, endpoint=proxy.endpoint, kubernetes={"role": "kes", "jwt": str(file)}) as store:
            assert shown(proxy.recorded)[1] == ("PUT", "/v1/auth/kubernetes/login", {"jwt": first, "role": "kes"})
            store.create("my-key", OLDEST)
            kubernetes.revoke(first)
            file.write_text(second)
            revoke(bao, proxy)
            assert store.get("my-key") == OLDEST
            assert [body["jwt"] for _, path, body in shown(proxy.recorded) if path.endswith("/login")] == [
                first,
                second,
            ]
            file.unlink()
            revoke(bao, proxy)
            with pytest.raises(KeyStoreError, match=f"'{file}' cannot be read: No such file"):
                store.get("my-key")
            file.write_text(second)
            assert store.get("my-key") == OLDEST
        with opened(section, kubernetes={"role": "kes", "jwt": second}) as store:
            assert store.get("my-key") == OLDEST
        for role, jwt in (("kes", kubernetes.token("other")), ("kes", first), ("unknown", second)):
            with pytest.raises(
                KeyStoreError, match=r"refuses the login at 'auth/kubernetes'.*'kubernetes.role'"
            ) as told:
                vault.open(settings({**section, "kubernetes": {"role": role, "jwt": jwt}}))
            assert jwt not in str(told.value)


def test_a_login_that_kubernetes_kept_from_working_is_soon_tried_again(
    bao: OpenBao, proxy: FaultProxy, tmp_path: Path
) -> None:
    section = section_for(bao, 2)
    del section["approle"]
    bao.write_policy("kes-away", key_rights(section["engine"], 2))
    with FakeKubernetes(tmp_path) as kubernetes:
        bao.enable_kubernetes(kubernetes, "kes", "kes", ["kes-away"], path="away")
        jwt = kubernetes.token("kes")
        login = {"role": "kes", "jwt": jwt, "engine": "away"}
        with opened(section, endpoint=proxy.endpoint, kubernetes=login) as store:
            store.create("my-key", OLDEST)
            kubernetes.away = True
            revoke(bao, proxy)
            with pytest.raises(KeyStoreError, match="permission denied"):
                store.get("my-key")
            kubernetes.away = False
            before = logins(proxy)
            wait_until(lambda: logins(proxy) > before)
            assert store.get("my-key") == OLDEST


@pytest.mark.parametrize(
    ("jwt", "words"),
    [
        ("token", "The name of a file needs a '/', such as './token'"),
        ("./does-not-exist", "'./does-not-exist' cannot be read: No such file or directory"),
        ("{}/empty", "'.*/empty' holds no token"),
        ("{}/binary", "'.*/binary' holds no token"),
    ],
)
def test_a_kubernetes_token_that_is_none_is_told_before_anything_is_called(
    tmp_path: Path, jwt: str, words: str
) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    section = {"endpoint": "http://127.0.0.1:1", "kubernetes": {"role": "kes", "jwt": jwt.format(tmp_path)}}
    with pytest.raises(KeyStoreError, match=words):
        vault.open(settings(section))


# --- namespaces ---


def test_everything_can_be_in_a_namespace(bao: OpenBao, proxy: FaultProxy) -> None:
    bao.new_namespace("team")
    bao.new_namespace("team/kes")
    bao.enable_transit(namespace="team/kes")
    section = section_for(bao, 2, namespace="team/kes", transit="kes")
    with opened(section, endpoint=proxy.endpoint, namespace="/team/kes/") as store:
        store.create("my-key", OLDEST)
        assert store.get("my-key") == OLDEST
        assert list(store.list("")) == ["my-key"]
        store.status()
        health, *others = proxy.recorded
        assert "/sys/health" in health.path
        assert "x-vault-namespace" not in health.headers
        assert "x-vault-namespace" not in others.pop().headers  # the health of `status`
        assert {request.headers["x-vault-namespace"] for request in others} == {"team/kes"}
        assert {request.headers["x-vault-request"] for request in proxy.recorded} == {"true"}
    assert bao.request("GET", path_of(section, "my-key")).status == 404


def test_the_login_can_be_in_a_namespace_above(bao: OpenBao, proxy: FaultProxy) -> None:
    """Its role may be given rights in those below."""
    bao.new_namespace("above")
    bao.new_namespace("above/below")
    engine = f"kv-{next(_engines)}"
    bao.enable_kv(engine, 2, namespace="above/below")
    rights = {f"below/{path}": given for path, given in key_rights(engine, 2).items()}
    section = bao.configuration(engine, 2, namespace="above", rights=rights, token_ttl="1s", token_max_ttl="1h")
    section["namespace"] = "above/below"
    section["approle"]["namespace"] = "above"
    with opened(section, endpoint=proxy.endpoint) as store:
        store.create("my-key", OLDEST)
        sent = {request.path: request.headers.get("x-vault-namespace", "") for request in proxy.recorded}
        assert sent["/v1/auth/approle/login"] == "above"
        assert sent[f"/v1/{engine}/data/my-key"] == "above/below"
        wait_until(lambda: ("PUT", "/v1/auth/token/renew-self") in proxy.requests)
        assert store.get("my-key") == OLDEST


def test_the_login_can_be_in_no_namespace_as_the_page_shows(bao: OpenBao, proxy: FaultProxy) -> None:
    (page,) = shown_sections("Namespaces")
    namespace = page["namespace"]
    bao.new_namespace(namespace)
    bao.enable_kv("kv", 2, namespace=namespace)
    rights = {f"{namespace}/{path}": given for path, given in key_rights("kv", 2).items()}
    section = bao.configuration("kv", 2, rights=rights)
    section |= {**page, "approle": {**page["approle"], **section["approle"]}}
    with opened(section, endpoint=proxy.endpoint) as store:
        store.create("my-key", OLDEST)
        assert store.get("my-key") == OLDEST
        sent = {request.path: request.headers.get("x-vault-namespace", "") for request in proxy.recorded}
        assert sent["/v1/auth/approle/login"] == ""
        assert sent["/v1/kv/data/my-key"] == namespace


# --- transit ---


@pytest.mark.parametrize("version", [1, 2])
def test_transit_keys_can_be_rotated(bao: OpenBao, version: int) -> None:
    bao.enable_transit(path=f"transit-{version}")
    rights = {
        **key_rights(f"kv-{next(_engines)}", version),
        "kv-*": ("create", "read", "list", "delete"),
        **transit_rights("kes", f"transit-{version}"),
    }
    section = section_for(bao, version, rights=rights)
    transit = {"key": "kes", "engine": f"transit-{version}"}
    with opened(section, transit=transit) as store:
        store.create("one", b"\x00\xff of the first")
        for _ in range(10):
            bao.rotate_transit(path=f"transit-{version}")
        store.create("two", b"of the eleventh")
        assert (store.get("one"), store.get("two")) == (b"\x00\xff of the first", b"of the eleventh")
        texts = [bao.call("GET", path_of(section, name))["data"] for name in ("one", "two")]
        texts = [data["data"] if version == 2 else data for data in texts]
        assert texts[0]["one"].startswith("vault:v1:")
        assert texts[1]["two"].startswith("vault:v11:")
    with opened(section) as store:
        assert sorted(store.list("")) == ["one", "two"]
        with pytest.raises(KeyStoreError, match=r"name its key with 'transit.key'"):
            store.get("two")


def test_keys_of_before_transit_stay_readable(bao: OpenBao) -> None:
    section = section_for(bao, 2, transit="kes")
    put(bao, section, "old", OLD.decode())
    with opened(section) as store:
        assert store.get("old") == OLD


def test_what_is_wrong_with_transit_is_told(bao: OpenBao) -> None:
    section = section_for(bao, 2, transit="kes")
    put(bao, section, "forged", "vault:v1:AAAA")
    with opened(section) as store, pytest.raises(KeyStoreError, match="invalid ciphertext"):
        store.get("forged")
    denied = pytest.raises(KeyStoreError, match=r"grant 'update' for the path 'transit/encrypt/unknown'")
    with opened(section, transit={"key": "unknown"}) as store, denied:
        (warning,) = store.warnings()
        assert warning.startswith("no key can be created: ")
        store.create("my-key", OLDEST)
    section = section_for(bao, 2, rights={"*": ("update", "read", "create")})
    absent = pytest.raises(KeyStoreError, match="has no 'nowhere/encrypt/kes'")
    with opened(section, transit={"key": "kes", "engine": "nowhere"}) as store, absent:
        store.create("my-key", OLDEST)


# --- TLS ---


def test_an_endpoint_without_tls_of_a_server_with_it_is_told(bao: OpenBao) -> None:
    endpoint = f"http://127.0.0.1:{bao.port}"
    with pytest.raises(KeyStoreError, match="speaks TLS: write the endpoint with https://"):
        vault.open(settings({**section_for(bao, 2), "endpoint": endpoint}))


def test_tls_trusts_whom_it_is_told_to(bao: OpenBao, tmp_path: Path) -> None:
    engine = f"kv-{next(_engines)}"
    bao.enable_kv(engine, 2)
    section = bao.configuration(engine, 2)
    folder = tmp_path / "authorities"
    folder.mkdir()
    (folder / "bao.pem").write_bytes(bao.ca_file.read_bytes())
    (folder / "notes.txt").write_text("nothing")
    for ca in (bao.ca_file, folder):
        with opened(section, tls={"ca": str(ca)}) as store:
            store.list("")
    other, _ = make(name="Other CA", ca=True).write(tmp_path, "other")
    for tls in ({"ca": str(other)}, {}):
        with pytest.raises(KeyStoreUnreachable, match=r"not trusted.*'tls.ca'"):
            vault.open(settings({**section, "tls": tls}))
    with pytest.raises(KeyStoreError, match="no-such-file"):
        vault.open(settings({**section, "tls": {"ca": str(tmp_path / "no-such-file")}}))


def test_a_certificate_is_shown_to_a_server_that_wants_one(tmp_path: Path) -> None:
    authority = make(name="Clients", ca=True)
    client_ca, _ = authority.write(tmp_path, "clients")
    cert, key = make(name="kes", issuer=authority, eku=["client"]).write(tmp_path, "kes")
    with OpenBao(tmp_path / "bao", client_ca=client_ca) as bao:
        bao.enable_kv("kv", 2)
        section = bao.configuration("kv", 2)
        tls = {"ca": str(bao.ca_file)}
        with opened(section, tls={**tls, "cert": str(cert), "key": str(key)}) as store:
            store.create("my-key", OLDEST)
            assert store.get("my-key") == OLDEST
        with pytest.raises(KeyStoreUnreachable):
            vault.open(settings({**section, "tls": tls}))


# --- outages ---


def test_a_server_that_is_killed_and_comes_back(bao: OpenBao) -> None:
    engine = f"kv-{next(_engines)}"
    bao.enable_kv(engine, 2)
    section = bao.configuration(engine, 2, token_ttl="1s", token_max_ttl="1h")
    with opened(section) as store:
        store.create("my-key", OLDEST)
        bao.kill()
        killed = time.monotonic()
        try:
            for call in (store.get, store.delete):
                with pytest.raises(KeyStoreUnreachable):
                    call("my-key")
            with pytest.raises(KeyStoreUnreachable):
                store.status()
            with pytest.raises(KeyStoreUnreachable, match="is it running"):
                vault.open(settings(section))
            wait_until(lambda: time.monotonic() > killed + 1)  # when the token has expired
        finally:
            bao.start()
        assert store.get("my-key") == OLDEST
        assert store.status() > 0


def test_a_server_that_is_sealed_and_unsealed(bao: OpenBao, proxy: FaultProxy) -> None:
    section = section_for(bao, 2)
    with opened(section, endpoint=proxy.endpoint, status={"ping": "0.2"}) as store:
        store.create("my-key", OLDEST)
        bao.seal()
        try:
            with pytest.raises(KeyStoreUnreachable, match="sealed: unseal it"):
                store.get("my-key")
            proxy.requests.clear()
            for _ in range(10):  # they are not even sent
                with pytest.raises(KeyStoreUnreachable, match="sealed: unseal it"):
                    store.create("new", OLDEST)
            assert all("/sys/health" in path for _, path in proxy.requests)
            with pytest.raises(KeyStoreUnreachable, match="sealed: unseal it"):
                store.status()
            with pytest.raises(KeyStoreUnreachable, match="sealed: unseal it"):
                vault.open(settings(section))
        finally:
            bao.unseal()
        wait_until(lambda: reads(store, "my-key"))
        assert list(store.list("")) == ["my-key"]


def test_a_seal_is_noticed_without_any_call(bao: OpenBao, proxy: FaultProxy) -> None:
    with opened(section_for(bao, 2), endpoint=proxy.endpoint, status={"ping": "0.1"}) as store:
        bao.seal()
        try:
            asked = len(proxy.requests)
            wait_until(lambda: len(proxy.requests) >= asked + 3)
            with pytest.raises(KeyStoreUnreachable, match="sealed"):
                store.list("")
            assert all("/sys/health" in path for _, path in proxy.requests[asked:])
        finally:
            bao.unseal()
        wait_until(lambda: not failure(store))


def test_who_would_ask_too_often_is_told(bao: OpenBao) -> None:
    with pytest.raises(KeyStoreError, match=r"'status\.ping' must be at least '100ms'"):
        vault.open(settings({**section_for(bao, 2), "status": {"ping": "0.099"}}))


def test_a_server_that_is_restarted_and_sealed_for_a_while(bao: OpenBao) -> None:
    with opened(section_for(bao, 2), status={"ping": "0.1"}) as store:
        store.create("my-key", OLDEST)
        bao.restart(unseal=False)
        try:
            wait_until(lambda: "sealed" in failure(store))
        finally:
            bao.unseal()
        wait_until(lambda: reads(store, "my-key"))


def test_a_new_server_is_told_to_be_initialized(tmp_path: Path) -> None:
    bao = OpenBao(tmp_path)
    bao.start(unseal=False)
    try:
        with pytest.raises(KeyStoreUnreachable, match="not initialized"):
            vault.open(settings({"endpoint": bao.plain_endpoint, "approle": {"id": "a", "secret": "b"}}))
    finally:
        bao.kill()


def test_what_is_not_vault_is_told(tmp_path: Path, bao: OpenBao, proxy: FaultProxy) -> None:
    section = section_for(bao, 2)
    for fault in ("garbage", "empty", "wrong"):
        with proxy.fault(fault), pytest.raises(KeyStoreError, match="is it the right endpoint"):
            vault.open(settings({**section, "endpoint": proxy.endpoint}))


def reads(store: KeyStore, name: str) -> bool:
    try:
        return store.get(name) == OLDEST
    except KeyStoreUnreachable:
        return False


def failure(store: KeyStore) -> str:
    try:
        store.list("")
    except KeyStoreUnreachable as error:
        return str(error)
    return ""


# --- a cluster ---


@pytest.mark.parametrize("version", [1, 2])
def test_what_was_written_through_a_standby_is_read_there(cluster: tuple[OpenBao, OpenBao], version: int) -> None:
    """Its state is some milliseconds old: without care, some of these reads find no key that was just created, or one
    that was just deleted."""
    active, standby = cluster
    section = {**section_for(active, version), "endpoint": standby.plain_endpoint}
    with settled(section, active, standby) as store:
        for number in range(50):
            store.create(f"key-{number}", OLDEST)
            assert store.get(f"key-{number}") == OLDEST
            assert f"key-{number}" in store.list("")
            store.delete(f"key-{number}")
            with pytest.raises(KeyNotFound):
                store.get(f"key-{number}")
        store.create("key", OLDEST)

        def create_and_read(number: int) -> bool:
            store.create(f"other-{number}", OLDEST)
            return store.get(f"other-{number}") == OLDEST

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(create_and_read, range(80)))


def test_a_standby_that_lost_the_active_server_says_so(cluster: tuple[OpenBao, OpenBao]) -> None:
    active, standby = cluster
    section = {**section_for(active, 2), "endpoint": standby.plain_endpoint}
    with settled(section, active, standby) as store:
        store.create("my-key", OLDEST)
        active.kill()
        try:
            with pytest.raises(KeyStoreUnreachable):
                store.create("new", OLDEST)
        finally:
            active.start()
        wait_until(lambda: reads(store, "my-key"), seconds=60)  # one of them has to be elected


def test_the_newest_state_is_the_one_that_counts(bao: OpenBao) -> None:
    def index(cluster: str, value: int) -> str:
        return base64.b64encode(json.dumps({"cluster": cluster, "value": str(value)}).encode()).decode()

    newer = vault_session._newer
    assert newer("", index("a", 9)) == index("a", 9)
    assert newer(index("a", 9), index("a", 10)) == index("a", 10)
    assert newer(index("a", 10), index("a", 9)) == index("a", 10)
    assert newer(index("a", 10), index("b", 9)) == index("b", 9)
    for strange in ("v1:some:1:2:hmac", "e30=", "W10=", "bnVsbA=="):
        assert newer(index("a", 10), strange) == strange
        assert newer(strange, index("a", 10)) == index("a", 10)
    with opened(section_for(bao, 2)) as store:
        vars(vars(store)["_session"])["_index"] = "of another kind of server"
        with pytest.raises(KeyStoreError, match="X-Vault-Index"):
            store.list("")
        assert list(store.list("")) == []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[OpenBao, OpenBao]]:
    with OpenBao(tmp_path_factory.mktemp("active")) as active:
        active.enable_auth("approle")
        standby = OpenBao(tmp_path_factory.mktemp("standby"))
        try:
            standby.join(active)
            yield active, standby
        finally:
            standby.kill()


@contextmanager
def settled(section: dict[str, Any], active: OpenBao, standby: OpenBao) -> Iterator[KeyStore]:
    """When the standby has caught up with what was just set up. No login is tried before, since a role is locked after
    five that are refused."""
    put(active, section, "last", "x")
    wait_until(lambda: standby.request("GET", path_of(section, "last")).status == 200)
    with opened(section) as store:
        yield store


# --- the page ---


@pytest.fixture
def walker(bao: OpenBao, tmp_path: Path) -> Iterator[Walker]:
    """An operator of OpenBao, as after `bao login`."""
    walker = Walker(tmp_path / "operator")
    walker.add_program("bao", f'exec "{PROGRAM}" "$@"')
    walker.type("source .venv/bin/activate")
    namespace = f"page-{next(_engines)}"
    bao.new_namespace(namespace)
    walker.environment |= {
        "BAO_ADDR": bao.endpoint,
        "BAO_CACERT": str(bao.ca_file),
        "BAO_TOKEN": bao.root_token,
        "BAO_NAMESPACE": namespace,  # in which nothing is prepared yet
    }
    yield walker
    bao.call("DELETE", f"sys/namespaces/{namespace}")


def prepare(walker: Walker, title: str, changes: dict[str, str] | None = None) -> None:
    for block in shell_blocks(page_section(PAGE, title)):
        for old, new in (changes or {}).items():
            block = block.replace(old, new)
        walker.type(block)


def shown_sections(title: str) -> list[dict[str, Any]]:
    """What is shown of the section `vault` there."""
    blocks = [yaml.safe_load(text) for language, text in BLOCK.findall(page_section(PAGE, title)) if language == "yaml"]
    return [block.get("keystore", {}).get("vault", block) for block in blocks]


def use_the_server(tmp_path: Path, bao: OpenBao, walker: Walker, vault_section: dict[str, Any]) -> None:
    """A server with that configuration, but for the address and the namespace of this test."""
    vault_section |= {
        "endpoint": bao.endpoint,
        "tls": {"ca": str(bao.ca_file)},
        "namespace": walker.environment["BAO_NAMESPACE"],
    }
    secrets = {name: walker.environment.get(name, "") for name in ("VAULT_APPROLE_ID", "VAULT_APPROLE_SECRET")}
    keystore = {"fs": None, "vault": vault_section}
    with start_server(tmp_path / "server", keystore=keystore, environment=secrets) as server:
        assert f"Hashicorp Vault: {bao.endpoint}" in server.stdout
        use(server)
        with server.client() as client:
            with pytest.raises(keswick.client.KeyExists):
                client.create_key("my-key")
            with pytest.raises(keswick.client.KeyNotFound):
                client.delete_key("another")
        assert "warning" not in server.stderr.lower()
        assert server.stop() == 0
        for secret in filter(None, secrets.values()):
            assert secret not in server.stdout + server.stderr


def test_a_server_runs_with_what_the_page_shows(bao: OpenBao, walker: Walker, tmp_path: Path) -> None:
    prepare(walker, "What to prepare")
    shown = shown_keystore("keystore-vault.md")["vault"]
    use_the_server(tmp_path, bao, walker, shown)
    prepare(walker, "Transit")
    (transit,) = shown_sections("Transit")
    use_the_server(tmp_path / "transit", bao, walker, {**shown, **transit, "prefix": "other"})
    data = json.loads(walker.type("bao kv get -format=json -mount=kes other/my-key"))["data"]["data"]
    assert data["my-key"].startswith("vault:v1:")
    walker.environment["BAO_TOKEN"] = walker.type(
        'bao write -field=token auth/approle/login role_id="$VAULT_APPROLE_ID" secret_id="$VAULT_APPROLE_SECRET"'
    )
    walker.type("! bao kv put -mount=kes my-key my-key=replaced")  # the policy does not allow it


def test_a_server_logs_in_through_kubernetes_as_the_page_shows(bao: OpenBao, walker: Walker, tmp_path: Path) -> None:
    prepare(walker, "What to prepare")
    with FakeKubernetes(tmp_path) as kubernetes:
        here = f"{kubernetes.endpoint} kubernetes_ca_cert=@{kubernetes.ca_file} disable_local_ca_jwt=true"
        prepare(walker, "Kubernetes", {"https://kubernetes.default.svc": here})
        token = tmp_path / "token"
        token.write_text(kubernetes.token("kes", "kes"))
        (shown,) = shown_sections("Kubernetes")
        shown["kubernetes"]["jwt"] = str(token)
        use_the_server(tmp_path, bao, walker, shown)


def test_the_policy_for_version_1_is_enough_and_no_more(bao: OpenBao, walker: Walker) -> None:
    namespace = walker.environment["BAO_NAMESPACE"]
    bao.enable_kv("kes", 1, namespace=namespace)
    (policy,) = (text for language, text in BLOCK.findall(PAGE.read_text()) if language == "text")
    section = bao.configuration("kes", 1, namespace=namespace, plain=True, rights={})
    name = bao.call("LIST", "sys/policies/acl", namespace=namespace)["data"]["keys"]
    bao.call("PUT", f"sys/policies/acl/{name[-1]}", {"policy": policy}, namespace=namespace)
    with opened(section) as store:
        store.create("my-key", OLDEST)
        assert store.get("my-key") == OLDEST
        assert list(store.list("")) == ["my-key"]
        store.delete("my-key")
        (warning,) = store.warnings()
        assert "have no lock" in warning


def test_a_server_does_not_start_while_the_key_store_is_sealed(bao: OpenBao, tmp_path: Path) -> None:
    engine = f"kv-{next(_engines)}"
    bao.enable_kv(engine, 2)
    keystore = {"fs": None, "vault": bao.configuration(engine, 2)}
    bao.seal()
    try:
        with (
            pytest.raises(RuntimeError, match=r"ended with 1:(.|\n)*Error: .*is sealed: unseal it"),
            start_server(tmp_path, keystore=keystore),
        ):
            pass
    finally:
        bao.unseal()
    with start_server(tmp_path, keystore=keystore) as server, server.client() as client:
        client.create_key("my-key")
