import json
import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, generic, http
from support.certificates import Pair, make
from support.fake_plugin import FakePlugin
from support.fault_proxy import FaultProxy
from support.rest_service import Reply, Request
from support.server import start_server
from support.walker import BLOCK, section

PAGE = Path(__file__).parents[2] / "docs" / "keystore-plugin.md"
OLD_VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'


@pytest.fixture(scope="module")
def pair() -> Pair:
    return make("p256", sans=["127.0.0.1"], eku=["server"])


@pytest.fixture
def ca(pair: Pair, tmp_path: Path) -> str:
    path = tmp_path / "ca.crt"
    path.write_bytes(pair.cert_pem)
    return str(path)


@pytest.fixture
def plugin(pair: Pair) -> Iterator[FakePlugin]:
    with FakePlugin(pair) as plugin:
        yield plugin


@pytest.fixture
def store(plugin: FakePlugin, ca: str) -> Iterator[KeyStore]:
    store = generic.open({"endpoint": plugin.endpoint, "tls.ca": ca})
    with patch.object(http, "pause_seconds", lambda: 0.01):
        yield store
    store.close()


def test_the_requests_are_those_of_the_protocol(store: KeyStore, plugin: FakePlugin) -> None:
    store.create("my-key", OLD_VALUE)
    assert store.get("my-key") == OLD_VALUE
    assert list(store.list("my")) == ["my-key"]
    store.delete("my-key")
    assert store.status() >= 0
    assert [(request.method, request.target) for request in plugin.requests] == [
        ("POST", "/v1/key/my-key"),
        ("GET", "/v1/key/my-key"),
        ("GET", "/v1/key"),
        ("GET", "/v1/key/my-key"),
        ("DELETE", "/v1/key/my-key"),
        ("GET", "/"),
    ]
    assert json.loads(plugin.requests[0].body) == {
        "bytes": "eyJieXRlcyI6IjhmNThPMjYwdHpBbkdjSzlURTQ3QjcxaTJPVVJVSXN4QjgwN2xoVFQzUTA9In0="
    }


@pytest.mark.parametrize("name", ["my key", "a.b", "ключ", "a%2Fb", "x?y=1#z", "a+b", "'"])
def test_old_names_are_kept_apart_by_escaping(store: KeyStore, plugin: FakePlugin, name: str) -> None:
    plugin.values[name] = OLD_VALUE
    assert store.get(name) == OLD_VALUE
    assert list(store.list("")) == [name]
    store.delete(name)
    store.create(name, b"new")
    assert plugin.values == {name: b"new"}


@pytest.mark.parametrize(
    "lines",
    [
        b'{"name":"a","last":false}\n{"name":"b","last":true}\n',
        b'{"name":"a","last":false}\r\n\r\n{"name":"b","last":true}',
        b'{"name":"a"}\n{"name":"b"}\n{"last":true}\n',
        b'{"name":"a","last":false}\n{"name":"../b","last":false}\n{"name":"b","last":false}\n{"name":"","last":true}\n',
    ],
)
def test_a_list_may_be_written_in_many_ways(store: KeyStore, plugin: FakePlugin, lines: bytes) -> None:
    with plugin.instead(lambda request: Reply(200, lines)):
        assert list(store.list("")) == ["a", "b"]
        assert list(store.list("b")) == ["b"]


def test_an_empty_list_may_be_nothing_if_it_says_what_it_is(store: KeyStore, plugin: FakePlugin) -> None:
    with plugin.instead(lambda request: Reply(200, b"", "application/x-ndjson; charset=utf-8")):
        assert list(store.list("")) == []
    with plugin.instead(lambda request: Reply(200, b"")), pytest.raises(KeyStoreError, match='"last":true'):
        store.list("")


@pytest.mark.parametrize(
    "lines",
    [
        b'{"name":"a","last":false}\n',
        b'{"name":"a","last":false}\n{"na',
        b'{"name":7,"last":true}\n',
        b"[]",
        b'"a"\n',
        b"\xff\n",
    ],
)
def test_a_list_that_was_cut_or_is_none_is_an_error(store: KeyStore, plugin: FakePlugin, lines: bytes) -> None:
    with plugin.instead(lambda request: Reply(200, lines)), pytest.raises(KeyStoreError, match="no list of names"):
        store.list("")


def test_a_create_whose_answer_was_lost_knows_its_own_key(store: KeyStore, plugin: FakePlugin) -> None:
    with plugin.losing("POST", "/key"):
        store.create("key", b"mine")
    assert [request.method for request in plugin.requests] == ["POST", "POST", "GET"]
    plugin.values["other"] = b"theirs"
    with plugin.losing("POST", "/other"), pytest.raises(KeyExists):
        store.create("other", b"mine")


def test_a_create_that_was_lost_overtaken_and_deleted_again_found_a_key(store: KeyStore, plugin: FakePlugin) -> None:
    """What `create` raises of a name is never that it is not there."""

    def delete_before_it_is_read(request: Request) -> Reply | None:
        if request.method == "POST" and len(plugin.requests) == 1:
            return Reply(502)
        if request.method == "GET":
            plugin.values.clear()
        return None

    plugin.values["key"] = b"theirs"
    with plugin.instead(delete_before_it_is_read), pytest.raises(KeyExists):
        store.create("key", b"mine")


def test_a_delete_whose_answer_was_lost_is_done() -> None:
    """The connection ends without an answer."""
    with FakePlugin() as plugin, FaultProxy(plugin.port) as proxy:
        store = generic.open({"endpoint": proxy.endpoint})
        proxy.choose = lambda request: "lost" if request.method == "DELETE" and plugin.values else None
        plugin.values["key"] = b"x"
        with patch.object(http, "pause_seconds", lambda: 0.01):
            store.delete("key")
        assert [request.method for request in plugin.requests] == ["GET", "DELETE", "DELETE"]
        store.close()


def test_an_absent_key_is_not_found_where_the_plugin_deletes_anything(store: KeyStore, plugin: FakePlugin) -> None:
    plugin.deletes_anything = True
    with pytest.raises(KeyNotFound):
        store.delete("key")
    assert not plugin.seen("DELETE", "/key")


@pytest.mark.parametrize("status", [500, 501, 503, 599])
def test_a_plugin_in_trouble_is_asked_three_times(store: KeyStore, plugin: FakePlugin, status: int) -> None:
    with (
        plugin.instead(lambda request: Reply(status, {"message": "the disk is full"})),
        pytest.raises(KeyStoreError, match=f"answered {status}.*the disk is full") as told,
    ):
        store.get("key")
    assert len(plugin.requests) == 3
    assert isinstance(told.value, KeyStoreUnreachable) is (status == 503)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, {"message": "not found"}),
        (404, b"<html>"),
        (400, {"message": "name is too long"}),
        (200, {"bytes": 7}),
        (200, {"bytes": "a!"}),
        (200, {"bytes": "YQ"}),
        (200, []),
    ],
)
def test_an_odd_answer_is_no_absent_key(store: KeyStore, plugin: FakePlugin, status: int, body: Any) -> None:
    with plugin.instead(lambda request: Reply(status, body)):
        for call in (store.get, store.delete, lambda name: store.create(name, b"x")):
            if call == store.delete and body in ({"bytes": "a!"}, {"bytes": "YQ"}):
                continue  # a broken key may be deleted
            with pytest.raises(KeyStoreError):
                call("key")


def test_no_error_shows_what_was_to_be_kept(store: KeyStore, plugin: FakePlugin) -> None:
    def echo(request: Request) -> Reply:
        return Reply(400, {"message": f"cannot keep {request.body.decode()}"})

    with plugin.instead(echo), pytest.raises(KeyStoreError, match="cannot keep") as told:
        store.create("key", OLD_VALUE)
    assert "eyJ" not in str(told.value)


def test_the_plugin_may_restart_and_connections_are_used_again(store: KeyStore, plugin: FakePlugin) -> None:
    for number in range(20):
        store.create(f"key-{number}", OLD_VALUE)
    assert plugin.connections == 1
    plugin.restart()
    assert store.get("key-7") == OLD_VALUE
    assert plugin.connections == 2
    plugin.stop()
    with pytest.raises(KeyStoreUnreachable, match="is it running"):
        store.status()
    plugin.start()
    assert store.status() >= 0


def test_a_kept_connection_that_dies_is_no_outage() -> None:
    with FakePlugin() as plugin, FaultProxy(plugin.port) as proxy:
        store = generic.open({"endpoint": proxy.endpoint})
        store.status()
        proxy.choose = lambda request: "lost" if len(proxy.requests) == 2 else None
        with patch.object(http, "pause_seconds", lambda: 0.01):
            assert store.status() >= 0
        assert len(proxy.requests) == 3
        store.close()


def test_a_certificate_of_somebody_else_is_told(plugin: FakePlugin, tmp_path: Path) -> None:
    other, _ = make("p256", sans=["127.0.0.1"]).write(tmp_path, "other")
    store = generic.open({"endpoint": plugin.endpoint, "tls.ca": str(other)})
    for call in (store.status, lambda: store.get("key")):
        with pytest.raises(KeyStoreUnreachable, match=r"not trusted.*set 'tls\.ca'"):
            call()
    store.close()


def test_older_tls_is_refused(plugin: FakePlugin, ca: str) -> None:
    assert plugin._context is not None
    plugin._context.maximum_version = ssl.TLSVersion.TLSv1_2
    store = generic.open({"endpoint": plugin.endpoint, "tls.ca": ca})
    with pytest.raises(KeyStoreUnreachable, match=r"the TLS handshake failed .*(?i:version)"):
        store.get("key")
    store.close()


def test_a_plugin_that_wants_a_certificate_gets_it(pair: Pair, ca: str, tmp_path: Path) -> None:
    client = make("p256", name="kes", eku=["client"])
    cert, key = client.write(tmp_path, "client")
    with FakePlugin(pair, clients=client) as plugin:
        store = generic.open({"endpoint": plugin.endpoint, "tls.ca": ca, "tls.cert": str(cert), "tls.key": str(key)})
        store.create("key", OLD_VALUE)
        assert store.get("key") == OLD_VALUE
        store.close()
        without = generic.open({"endpoint": plugin.endpoint, "tls.ca": ca})
        with patch.object(http, "pause_seconds", lambda: 0.01), pytest.raises(KeyStoreUnreachable):
            without.get("key")
        without.close()


def test_who_is_refused_is_told_what_was_shown(store: KeyStore, plugin: FakePlugin) -> None:
    with (
        plugin.instead(lambda request: Reply(403, {"message": "unknown client"})),
        pytest.raises(KeyStoreError, match=r"403 Forbidden: unknown client; .* no certificate: set 'tls\.cert'"),
    ):
        store.get("key")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"endpoint": "127.0.0.1:7003"}, "is no URL"),
        ({"endpoint": "https://127.0.0.1:7003", "tls.ca": "/nowhere/ca.crt"}, r"tls\.ca '/nowhere/ca\.crt'"),
        (
            {"endpoint": "https://127.0.0.1:7003", "tls.cert": "/nowhere/a.crt", "tls.key": "/nowhere/a.key"},
            r"tls\.cert '/nowhere/a\.crt'",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_told(settings: dict[str, str], words: str) -> None:
    with pytest.raises(KeyStoreError, match=words):
        generic.open(settings)


def test_plain_http_is_warned_of() -> None:
    store = generic.open({"endpoint": "http://127.0.0.1:7003"})
    (warning,) = store.warnings()
    assert "without encryption" in warning
    store.close()


def test_a_server_runs_with_the_configuration_of_the_page(pair: Pair, tmp_path: Path) -> None:
    client = make("p256", name="kes", eku=["client"])
    ca, _ = pair.write(tmp_path, "plugin-ca")
    cert, key = client.write(tmp_path, "plugin-client")
    ((language, block),) = BLOCK.findall(section(PAGE, "Configuration"))
    assert language == "yaml"
    with FakePlugin(pair, clients=client) as plugin:
        plugin.values["old-key"] = OLD_VALUE
        text = block.replace("https://127.0.0.1:7003", plugin.endpoint)
        for path in (ca, cert, key):
            assert f"/etc/kes/{path.name}" in text
            text = text.replace(f"/etc/kes/{path.name}", str(path))
        configured = yaml.safe_load(text)["keystore"]
        with start_server(tmp_path / "server", keystore={"fs": None, **configured}) as server:
            assert f"Plugin: {plugin.endpoint}" in server.stdout
            with server.client() as kes:
                data_key = kes.generate_key("old-key")
                assert kes.decrypt("old-key", data_key.ciphertext) == data_key.plaintext
                kes.create_key("new-key")
                assert sorted(kes.list_keys()) == ["new-key", "old-key"]
                kes.delete_key("old-key")
            assert list(plugin.values) == ["new-key"]
            assert re.fullmatch(rb"[A-Za-z0-9+/]+=*", plugin.values["new-key"])
