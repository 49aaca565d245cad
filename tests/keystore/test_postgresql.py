"""What is special to PostgreSQL, against a real server."""

import json
import logging
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg
import pytest
import yaml
from psycopg import sql

from keswick.client import KeyNotFound as ClientKeyNotFound
from keswick.client.errors import KeyStoreFailed
from keswick.keystore import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, NotAKey, postgresql
from support.certificates import make
from support.postgresql import PASSWORD, PostgreSQL, TCPProxy
from support.server import start_server
from support.sockets import listening
from support.walker import BLOCK, section

PAGE = Path(__file__).parents[2] / "docs" / "keystore-postgresql.md"
VALUE = b'{"bytes":"8f58O260tzAnGcK9TE47B71i2OURUIsxB807lhTT3Q0="}'
DEADLINE = 60.0

Open = Callable[..., KeyStore]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as server:
        yield server


@pytest.fixture
def table(server: PostgreSQL) -> str:
    return f"keys_{random.randrange(10**9)}"


@pytest.fixture
def open_store(server: PostgreSQL, table: str) -> Iterator[Open]:
    """Opens a store in the test's own table; a setting that is None is left out."""
    with ExitStack() as stack:

        def open_store(**settings: str | None) -> KeyStore:
            wanted = {
                **server.settings(table=table),
                **{name.replace("__", "."): text for name, text in settings.items()},
            }
            store = postgresql.open({name: text for name, text in wanted.items() if text is not None})
            stack.callback(store.close)
            return store

        yield open_store


@pytest.fixture
def store(open_store: Open) -> KeyStore:
    return open_store()


@pytest.fixture
def proxy(server: PostgreSQL) -> Iterator[TCPProxy]:
    with TCPProxy(server.port) as proxy:
        yield proxy


def named(settings: dict[str, str]) -> dict[str, str]:
    return {name.replace(".", "__"): text for name, text in settings.items()}


def refusal(call: Callable[[], object], kind: type[KeyStoreError] = KeyStoreError) -> str:
    """What is said when the call fails, which shows no secret, and no error that might."""
    with pytest.raises(kind) as told:
        call()
    error = told.value
    assert isinstance(error, KeyStoreUnreachable) is (kind is KeyStoreUnreachable)
    assert error.__suppress_context__ or error.__context__ is None
    assert PASSWORD not in str(error)
    assert VALUE.decode() not in str(error)
    return str(error)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- settings ---


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"host": "postgres://db.example.com/kes"}, "is no name or address"),
        ({"host": "one,,two"}, "is no name or address"),
        ({"port": "many"}, "'many' is not a number"),
        ({"port": "65536"}, "'65536' is not a number"),
        ({"host": "a,b,c", "port": "1,2"}, "3 hosts and 2 ports"),
        ({"table": "Kes"}, "small letters"),
        ({"table": "a.b.c"}, "SCHEMA.TABLE"),
        ({"table": 'x"; DROP TABLE y'}, "SCHEMA.TABLE"),
        ({"credentials.password": "pass\0word"}, "'credentials.password' cannot be used"),
        ({"credentials.password": "pass\udcffword"}, "'credentials.password' cannot be used"),
        ({"database": "\0"}, "'database' cannot be used"),
        ({"tls.ca": "/does/not/exist"}, "tls.ca '/does/not/exist' cannot be used: No such file"),
        ({"tls.ca": __file__}, "holds no certificate"),
        ({"tls.cert": "/does/not/exist", "tls.key": "/neither"}, "tls.cert '/does/not/exist'"),
    ],
)
def test_a_wrong_setting_is_told(settings: dict[str, str], words: str) -> None:
    usable = {"host": "localhost", "port": "1", "database": "kes", "table": "kes_keys", "tls.mode": "verify-full"}
    usable |= {"credentials.username": "kes"}
    with pytest.raises(KeyStoreError, match=re.escape(words)) as told:
        postgresql.open({**usable, **settings})
    assert "pass" not in str(told.value).replace("credentials.password", "")


def test_the_library_is_loaded_only_when_a_store_is_opened() -> None:
    script = "import sys, keswick.keystore.postgresql; print('psycopg' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True
    )
    assert out.stdout.strip() == "False", out.stderr


def test_a_store_tells_where_it_is(server: PostgreSQL, store: KeyStore) -> None:
    assert store.description == "PostgreSQL: localhost/kes"
    assert PASSWORD not in repr(store) + repr(vars(store))


# --- logging in ---


@pytest.mark.parametrize("password", ["' or ''='", "\\", " blanks ", "%s", "a=b host=evil", "line\nline", "日本", '"'])
def test_a_password_may_hold_anything(server: PostgreSQL, open_store: Open, store: KeyStore, password: str) -> None:
    username, _ = server.new_user()
    server.admin("ALTER ROLE {} PASSWORD {}", sql.Identifier(username), sql.Literal(password))
    server.admin("GRANT kes TO {}", sql.Identifier(username))
    assert open_store(credentials__username=username, credentials__password=password).status() >= 0


def test_a_wrong_password_is_told(open_store: Open) -> None:
    said = refusal(lambda: open_store(credentials__password="hush"))
    assert "does not let 'kes' in" in said
    assert "credentials.password" in said
    assert "hush" not in said
    assert "no password supplied" in refusal(lambda: open_store(credentials__password=None))
    said = refusal(lambda: open_store(credentials__password="kes"))  # which is a word of what the server says, too
    assert "does not let 'kes' in (FATAL:  password authentication failed for user \"...\")" in said


def test_a_role_that_may_not_log_in_is_told(server: PostgreSQL, open_store: Open) -> None:
    username, password = server.new_user()
    server.admin("ALTER ROLE {} NOLOGIN", sql.Identifier(username))
    said = refusal(lambda: open_store(credentials__username=username, credentials__password=password))
    assert "not permitted to log in" in said


def test_a_database_that_is_not_there_is_told(open_store: Open) -> None:
    assert "has no database 'nothing'" in refusal(lambda: open_store(database="nothing"))


def test_a_database_that_is_closed_to_the_role_is_told(server: PostgreSQL, open_store: Open) -> None:
    username, password = server.new_user()
    server.admin("REVOKE CONNECT ON DATABASE kes FROM PUBLIC")
    said = refusal(lambda: open_store(credentials__username=username, credentials__password=password))
    assert "GRANT CONNECT ON DATABASE" in said


def test_a_host_that_is_not_there_is_told(open_store: Open) -> None:
    said = refusal(lambda: open_store(port="1"), KeyStoreUnreachable)
    assert "'localhost' cannot be reached (Connection refused)" in said
    said = refusal(lambda: open_store(host="/does/not/exist"), KeyStoreUnreachable)
    assert "cannot be reached (No such file or directory)" in said
    assert "host name is not known" in refusal(lambda: open_store(host="nowhere.invalid"), KeyStoreUnreachable)


def test_of_several_hosts_the_one_that_says_most_is_told(server: PostgreSQL, open_store: Open) -> None:
    hosts = {"host": "localhost,localhost,localhost", "port": f"1,{server.port},1"}
    open_store(**hosts).create("key", VALUE)
    said = refusal(lambda: open_store(**hosts, credentials__password="hush"))
    assert "does not let 'kes' in (FATAL:  password authentication failed for user \"kes\")" in said


def test_a_server_that_speaks_another_language_is_passed_on(open_store: Open) -> None:
    def speak(connection: socket.socket) -> None:
        connection.recv(65536)
        words = "S致命的エラー\0VFATAL\0C28P01\0Mパスワード認証に失敗しました\0\0".encode()
        connection.sendall(b"E" + (len(words) + 4).to_bytes(4, "big") + words)

    with listening(speak) as port:
        said = refusal(lambda: open_store(port=str(port), tls__mode="off"))
        assert "cannot be used: 致命的エラー:  パスワード認証に失敗しました" in said


def test_what_is_no_database_is_told(open_store: Open) -> None:
    def speak(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with listening(speak) as port:
        said = refusal(lambda: open_store(port=str(port)))
        assert "what PostgreSQL does not say" in said
        said = refusal(lambda: open_store(port=str(port), tls__mode="off"))
        assert "what PostgreSQL does not say" in said


def test_no_secret_is_logged(open_store: Open, proxy: TCPProxy, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        store = open_store(port=str(proxy.port))
        store.create("key", VALUE)
        with proxy.on("lost"), pytest.raises(KeyStoreUnreachable):
            store.get("key")
    assert PASSWORD not in caplog.text
    assert "8f58O260" not in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG]


# --- TLS ---


def is_tls(server: PostgreSQL) -> bool:
    (row,) = server.admin(
        "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'kes'"
    )
    return bool(row[0])


def test_connections_use_tls_and_only_one_who_asks_for_it_goes_without(server: PostgreSQL, open_store: Open) -> None:
    store = open_store()
    assert is_tls(server)
    store.close()
    wait_until(lambda: server.connections() == 0)
    store = open_store(tls__mode="off")
    assert not is_tls(server)
    assert store.warnings() == []


def test_an_open_way_to_another_machine_is_a_warning(open_store: Open) -> None:
    (warning,) = open_store(host="localhost,192.0.2.1", tls__mode="off").warnings()
    assert "without TLS" in warning
    assert open_store(host="localhost,192.0.2.1").warnings() == []


def test_a_server_of_another_authority_is_not_trusted(open_store: Open, tmp_path: Path) -> None:
    other = make("p256", name="another", ca=True)
    (tmp_path / "other.crt").write_bytes(other.cert_pem)
    said = refusal(lambda: open_store(tls__ca=str(tmp_path / "other.crt")), KeyStoreUnreachable)
    assert "not trusted" in said
    assert "tls.ca" in said
    assert "not trusted" in refusal(lambda: open_store(tls__ca=None), KeyStoreUnreachable)


def test_authorities_may_lie_in_a_folder_or_be_those_of_the_system(
    server: PostgreSQL, open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0-other.pem").write_bytes(make("p256", name="another", ca=True).cert_pem)
    (tmp_path / "1-right.pem").write_bytes(server.authority.cert_pem)
    (tmp_path / "README").write_text("not a certificate")
    open_store(tls__ca=str(tmp_path)).create("key", VALUE)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(server.ca))
    assert open_store(tls__ca=None).get("key") == VALUE
    monkeypatch.setenv("SSL_CERT_FILE", "/does/not/exist")
    assert "the system trusts nobody" in refusal(lambda: open_store(tls__ca=None))


def test_authorities_that_are_renewed_on_disk_are_used_for_new_connections(
    server: PostgreSQL, open_store: Open, tmp_path: Path
) -> None:
    ca, other = tmp_path / "ca.crt", make("p256", name="another", ca=True)
    ca.write_bytes(server.authority.cert_pem)
    store = open_store(tls__ca=str(ca))
    store.create("key", VALUE)
    files = len(os.listdir("/proc/self/fd"))

    ca.write_bytes(other.cert_pem[:100])  # half of a renewal
    server.end_connections()
    assert store.get("key") == VALUE
    ca.write_bytes(other.cert_pem)
    server.end_connections()
    assert "not trusted" in refusal(lambda: store.get("key"), KeyStoreUnreachable)
    ca.write_bytes(other.cert_pem + server.authority.cert_pem)
    assert store.get("key") == VALUE
    ca.unlink()
    server.end_connections()
    assert store.get("key") == VALUE
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_certificate_of_another_host_is_not_accepted(open_store: Open) -> None:
    said = refusal(lambda: open_store(host="127.0.0.1"), KeyStoreUnreachable)
    assert "certificate of another host" in said
    assert 'does not match host name "127.0.0.1"' in said


def test_a_server_without_tls_is_told(open_store: Open) -> None:
    def speak(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"N")

    with listening(speak) as port:
        assert "offers no TLS: turn ssl on there" in refusal(lambda: open_store(port=str(port)))


def test_a_role_may_log_in_by_certificate(
    server: PostgreSQL, open_store: Open, store: KeyStore, tmp_path: Path
) -> None:
    server.admin("CREATE ROLE certified LOGIN IN ROLE kes")
    user = {"credentials__username": "certified", "credentials__password": None}
    right = server.certificate("certified", tmp_path)
    open_store(**user, **named(right)).create("key", VALUE)
    assert store.get("key") == VALUE

    assert "valid client certificate" in refusal(lambda: open_store(**user))
    other_name = named(server.certificate("kes", tmp_path))
    assert "common name is 'certified'" in refusal(lambda: open_store(**user, **other_name))
    stranger = named(server.certificate("certified", tmp_path, issuer=make("p256", name="another", ca=True)))
    assert "does not accept the client's certificate" in refusal(lambda: open_store(**user, **stranger))
    mixed = named({**right, "tls.key": server.certificate("certified", tmp_path)["tls.key"]})
    assert "key values mismatch" in refusal(lambda: open_store(**user, **mixed))
    Path(right["tls.key"]).chmod(0o644)
    assert "has group or world access" in refusal(lambda: open_store(**user, **named(right)))


def test_a_socket_needs_no_tls(server: PostgreSQL, open_store: Open) -> None:
    store = open_store(host=str(server.folder), credentials__password=None, tls__ca=None)
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    assert store.warnings() == []


# --- the table ---


def test_the_table_is_made(server: PostgreSQL, store: KeyStore, table: str) -> None:
    store.create("key", VALUE)
    ((name, value, made),) = server.in_kes("SELECT name, value, now() - created_at FROM {}", sql.Identifier(table))
    assert (name, value) == ("key", VALUE)
    assert made.total_seconds() < DEADLINE
    columns = server.in_kes(
        "SELECT column_name, data_type, collation_name, is_nullable FROM information_schema.columns "
        "WHERE table_name = {} ORDER BY ordinal_position",
        sql.Literal(table),
    )
    assert columns == [
        ("name", "text", "C", "NO"),
        ("value", "bytea", None, "NO"),
        ("created_at", "timestamp with time zone", None, "NO"),
    ]


def test_the_table_may_be_in_a_schema(server: PostgreSQL, open_store: Open, table: str) -> None:
    said = refusal(lambda: open_store(table=f"{table}.keys"))
    assert f'schema "{table}" does not exist' in said
    server.in_kes("CREATE SCHEMA {} AUTHORIZATION kes", sql.Identifier(table))
    open_store(table=f"{table}.keys").create("key", VALUE)
    assert server.in_kes("SELECT name FROM {}", sql.Identifier(table, "keys")) == [("key",)]


def test_who_may_not_make_the_table_is_told_what_to_run(server: PostgreSQL, open_store: Open) -> None:
    username, password = server.new_user()
    server.admin("GRANT CONNECT ON DATABASE kes TO {}", sql.Identifier(username))
    user = {"credentials__username": username, "credentials__password": password}
    said = refusal(lambda: open_store(**user))
    assert f"'{username}' cannot make it (permission denied for schema public)" in said
    server.in_kes(said.partition("run as the database's owner: ")[2])
    store = open_store(**user)
    store.create("key", VALUE)
    assert store.get("key") == VALUE
    assert list(store.list("")) == ["key"]
    store.delete("key")


def test_a_right_that_is_missing_is_named(server: PostgreSQL, open_store: Open, store: KeyStore, table: str) -> None:
    username, password = server.new_user()
    server.admin("GRANT CONNECT ON DATABASE kes TO {}", sql.Identifier(username))
    user = {"credentials__username": username, "credentials__password": password}
    assert "permission denied for table" in refusal(lambda: open_store(**user))
    server.in_kes("GRANT SELECT ON {} TO {}", sql.Identifier(table), sql.Identifier(username))
    store.create("key", VALUE)
    reader = open_store(**user)
    assert reader.get("key") == VALUE
    said = refusal(lambda: reader.create("new", VALUE))
    assert said == refusal(lambda: reader.delete("key"))
    server.in_kes(said.partition("run as the table's owner: ")[2])
    reader.create("new", VALUE)
    reader.delete("key")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("name text PRIMARY KEY, value text", "'value' bytea"),
        ("name integer PRIMARY KEY, value bytea", "'name' must be text"),
        ("name text PRIMARY KEY, secret bytea", 'column "value" does not exist'),
    ],
)
def test_another_table_of_that_name_is_told(
    server: PostgreSQL, open_store: Open, table: str, columns: str, words: str
) -> None:
    server.in_kes(f"CREATE TABLE {table} ({columns}); ALTER TABLE {table} OWNER TO kes")
    said = refusal(open_store)
    assert "is not one of keys" in said
    assert words in said


def test_a_table_that_lets_names_be_taken_twice_keeps_no_key(server: PostgreSQL, open_store: Open, table: str) -> None:
    server.in_kes(f"CREATE TABLE {table} (name text, value bytea); ALTER TABLE {table} OWNER TO kes")
    store = open_store()
    assert "is not one of keys" in refusal(lambda: store.create("key", VALUE))
    assert list(store.list("")) == []


def test_a_table_that_goes_is_told(server: PostgreSQL, store: KeyStore, table: str) -> None:
    server.in_kes("DROP TABLE {}", sql.Identifier(table))
    for call in (
        store.status,
        lambda: store.get("key"),
        lambda: store.create("key", VALUE),
        lambda: list(store.list("")),
    ):
        assert "restore it from a backup" in refusal(call)


def test_foreign_rows_are_left_out_or_told(server: PostgreSQL, store: KeyStore, table: str) -> None:
    def insert(name: str, value: sql.Composable) -> None:
        server.in_kes("INSERT INTO {} (name, value) VALUES ({}, {})", sql.Identifier(table), sql.Literal(name), value)

    for name in ("", ".", "a/b", "x" * 256):
        insert(name, sql.Literal(VALUE))
    insert("no-text", sql.Literal(b"\xff\0\xfe"))
    insert("largest", sql.SQL("convert_to(repeat('x', 1048576), 'UTF8')"))
    insert("larger", sql.SQL("convert_to(repeat('x', 1048577), 'UTF8')"))
    server.in_kes("ALTER TABLE {} ALTER COLUMN value DROP NOT NULL", sql.Identifier(table))
    insert("null", sql.NULL)

    assert sorted(store.list("")) == ["larger", "largest", "no-text", "null"]
    assert store.get("no-text") == b"\xff\0\xfe"
    assert store.get("largest") == b"x" * (1 << 20)
    assert "'larger' in the table" in refusal(lambda: store.get("larger"), NotAKey)
    assert "its value is NULL" in refusal(lambda: store.get("null"), NotAKey)
    for name in (".", "a/b", "", "x" * 256, "x\0"):
        with pytest.raises(KeyNotFound):
            store.get(name)
        with pytest.raises(KeyNotFound):
            store.delete(name)
        assert "cannot be the name" in refusal(lambda name=name: store.create(name, VALUE))  # type: ignore[misc]


def test_a_value_that_is_too_large_is_refused(store: KeyStore) -> None:
    store.create("largest", b"x" * (1 << 20))
    assert len(store.get("largest")) == 1 << 20
    assert "is no key" in refusal(lambda: store.create("larger", b"x" * ((1 << 20) + 1)))
    assert list(store.list("")) == ["largest"]


@pytest.mark.parametrize("name", ["my key", "a.b", "ключ", "100%", "%s", "'", "a\nb", "..."])
def test_names_of_old_can_be_kept(store: KeyStore, name: str) -> None:
    store.create(name, VALUE)
    with pytest.raises(KeyExists):
        store.create(name, b"another")
    assert store.get(name) == VALUE
    assert list(store.list("")) == list(store.list(name[0])) == list(store.list(name)) == [name]
    store.delete(name)


def test_a_prefix_is_taken_as_it_is(store: KeyStore) -> None:
    for name in ("a_1", "ab1", "a%1", "a1", "A_1"):
        store.create(name, VALUE)
    assert list(store.list("a_")) == ["a_1"]
    assert list(store.list("a%")) == ["a%1"]
    for prefix in ("a\0", "\udcff", "a/", "x" * 300):
        assert list(store.list(prefix)) == []


@pytest.mark.parametrize("at_once", [300, 2000, 10_000])
def test_a_list_is_complete_and_made_of_several_answers(
    server: PostgreSQL, store: KeyStore, table: str, at_once: int
) -> None:
    server.in_kes(
        "INSERT INTO {} (name, value) SELECT 'key-' || n, '' FROM generate_series(1, 2000) n", sql.Identifier(table)
    )
    store.create("other", VALUE)
    with patch.object(postgresql, "MOST_NAMES", at_once):
        listed = list(store.list("key-"))
        assert len(listed) == 2000
        assert set(listed) == {f"key-{number}" for number in range(1, 2001)}
        assert len(list(store.list(""))) == 2001


def test_a_list_that_is_not_read_on_holds_no_connection(server: PostgreSQL, store: KeyStore) -> None:
    for number in range(9):
        store.create(f"key-{number}", VALUE)
    with patch.object(postgresql, "MOST_NAMES", 2):
        lists = [iter(store.list("")) for _ in range(100)]
        assert {next(names) for names in lists} == {"key-0"}
        assert server.connections() == 1
        assert list(lists[0]) == [f"key-{number}" for number in range(1, 9)]


# --- at the same time ---


CREATOR = """
import json, sys
from keswick.keystore import KeyExists, postgresql
settings = json.loads(sys.stdin.readline())
print("ready", flush=True)
sys.stdin.readline()
store = postgresql.open(settings)
won = []
for number in range(50):
    try:
        store.create(f"key-{number}", f"{sys.argv[1]}-{number}".encode())
        won.append(number)
    except KeyExists:
        pass
store.close()
print(json.dumps(won))
"""


def test_of_creators_in_two_processes_one_wins_each_name(server: PostgreSQL, open_store: Open, table: str) -> None:
    """Which make the table at the same time, too."""
    creators = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", CREATOR, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        for number in range(2)
    ]
    for creator in creators:
        assert creator.stdin is not None
        assert creator.stdout is not None
        creator.stdin.write(json.dumps(server.settings(table=table)) + "\n")
        creator.stdin.flush()
        assert creator.stdout.readline() == "ready\n"
    for creator in creators:
        assert creator.stdin is not None
        creator.stdin.write("\n")
        creator.stdin.flush()
    first, second = (json.loads(creator.communicate(timeout=DEADLINE)[0]) for creator in creators)
    assert sorted(first + second) == list(range(50))
    store = open_store()
    for winner, names in enumerate((first, second)):
        for number in names:
            assert store.get(f"key-{number}") == f"{winner}-{number}".encode()


def test_servers_that_start_at_once_make_one_table(server: PostgreSQL, open_store: Open, table: str) -> None:
    def start(number: int, barrier: threading.Barrier) -> KeyStore:
        barrier.wait()
        return open_store(table=f"{table}_{number}")

    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            barrier = threading.Barrier(8)
            stores = list(pool.map(lambda _, n=number, b=barrier: start(n, b), range(8)))
            stores[0].create("key", VALUE)
            assert [store.get("key") for store in stores] == [VALUE] * 8
            for store in stores:
                store.close()


@contextmanager
def locked(server: PostgreSQL, table: str) -> Iterator[None]:
    """The table, for all others."""
    with psycopg.connect(host=str(server.folder), port=server.port, user="postgres", dbname="kes") as connection:
        connection.execute(sql.SQL("LOCK TABLE {}").format(sql.Identifier(table)))
        yield


def waiting_for_locks(server: PostgreSQL) -> int:
    ((count,),) = server.admin(
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'kes' AND wait_event_type = 'Lock'"
    )
    return int(count)


def test_connections_are_used_again_bounded_and_given_back(
    server: PostgreSQL, open_store: Open, proxy: TCPProxy, table: str
) -> None:
    with patch.object(postgresql, "STATEMENT_SECONDS", 100):
        store = open_store(port=str(proxy.port))
    for number in range(20):
        store.create(f"key-{number}", VALUE)
    assert proxy.made == 1
    with patch.object(postgresql, "CALL_SECONDS", 100.0), ThreadPoolExecutor(48) as pool:
        with locked(server, table):
            waiting = [pool.submit(store.get, "key-1") for _ in range(48)]
            wait_until(lambda: waiting_for_locks(server) == 32)
        assert {call.result() for call in waiting} == {VALUE}
        assert proxy.made == 32
        assert set(pool.map(lambda number: store.get(f"key-{number % 20}"), range(1000))) == {VALUE}
    assert proxy.made == 32
    with patch.object(postgresql, "IDLE_SECONDS", 0.0):
        store.status()
    wait_until(lambda: server.connections() == 1)
    store.close()
    wait_until(lambda: server.connections() == 0)
    assert "is closed" in refusal(lambda: store.get("key"))


def test_a_store_has_no_threads(open_store: Open) -> None:
    before = set(threading.enumerate())
    store = open_store()
    store.create("key", VALUE)
    assert set(threading.enumerate()) <= before


def test_who_gets_no_connection_is_told(server: PostgreSQL, open_store: Open, table: str) -> None:
    with patch.object(postgresql, "MOST_CONNECTIONS", 1):
        store = open_store()
        with ThreadPoolExecutor() as pool, locked(server, table):
            waiting = pool.submit(store.status)
            wait_until(lambda: waiting_for_locks(server) == 1)
            with patch.object(postgresql, "CALL_SECONDS", 0.1):
                assert "are in use" in refusal(store.status, KeyStoreUnreachable)
        assert waiting.result() > 0


def test_a_statement_that_waits_is_given_up_by_the_server(server: PostgreSQL, open_store: Open, table: str) -> None:
    with patch.object(postgresql, "STATEMENT_SECONDS", 1):
        store = open_store()
        with locked(server, table):
            assert "is the table locked" in refusal(lambda: store.create("key", VALUE), KeyStoreUnreachable)
            assert waiting_for_locks(server) == 0
    store.create("key", VALUE)


def test_nothing_is_prepared_at_the_server(store: KeyStore) -> None:
    """Its connections may change behind a pooler."""
    store.create("key", VALUE)
    for _ in range(20):
        store.get("key")
    assert isinstance(store, postgresql.PostgreSQLStore)
    with store._pool.connection(time.monotonic() + 10) as connection:
        count = connection.execute(sql.SQL("SELECT count(*) FROM pg_prepared_statements").format(), None)
        assert count.fetchall() == [(0,)]


def test_a_pooler_that_takes_no_options_is_used_without(server: PostgreSQL, open_store: Open) -> None:
    refused = 0

    def pool(client: socket.socket) -> None:
        """As pgbouncer does it; the password goes through."""
        nonlocal refused
        startup = client.recv(65536)
        if b"\0options\0-c " in startup:
            refused += 1
            words = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
            client.sendall(b"E" + (len(words) + 4).to_bytes(4, "big") + words)
            return
        with socket.create_connection(("127.0.0.1", server.port)) as upstream:
            upstream.sendall(startup)
            while True:
                for source in select.select([client, upstream], [], [], 20)[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    (upstream if source is client else client).sendall(data)

    with listening(pool) as port:
        store = open_store(port=str(port), tls__mode="off")
        store.create("key", VALUE)
        server.end_connections()
        assert store.get("key") == VALUE
        store.close()
    assert refused == 1


# --- answers that are lost ---


@contextmanager
def one_lost_answer(proxy: TCPProxy) -> Iterator[None]:
    def end() -> None:
        proxy.fault = None

    proxy.answered = end
    with proxy.on("lost"):
        yield
        assert proxy.fault is None


def test_a_create_whose_answer_was_lost_has_worked(open_store: Open, proxy: TCPProxy) -> None:
    store = open_store(port=str(proxy.port))
    with one_lost_answer(proxy):
        store.create("key", VALUE)
    assert store.get("key") == VALUE
    assert proxy.made == 2
    with one_lost_answer(proxy), pytest.raises(KeyExists):
        store.create("key", b"another")
    assert store.get("key") == VALUE


def test_other_calls_are_repeated(open_store: Open, proxy: TCPProxy) -> None:
    store = open_store(port=str(proxy.port))
    store.create("key", VALUE)
    with one_lost_answer(proxy):
        assert store.get("key") == VALUE
    with one_lost_answer(proxy):
        assert list(store.list("")) == ["key"]
    with one_lost_answer(proxy):
        store.delete("key")
    with one_lost_answer(proxy), pytest.raises(KeyNotFound):
        store.get("key")


# --- trouble at the server ---


def raising(server: PostgreSQL, table: str, statement: str) -> None:
    """Let each row that is inserted run a statement before."""
    server.in_kes(
        f"CREATE FUNCTION {table}_f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN NEW; END $$;"
        f"CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {table}_f()".replace(
            "{", "{{"
        ).replace("}", "}}")
    )


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ("53100", KeyStoreError, "full disk"),
        ("53200", KeyStoreUnreachable, "overloaded"),
        ("57P03", KeyStoreUnreachable, "starting"),
        ("08006", KeyStoreUnreachable, "overloaded"),
        ("57014", KeyStoreUnreachable, "is the table locked"),
        ("40001", KeyStoreError, "SerializationFailure, SQLSTATE 40001"),
        ("22P05", KeyStoreError, "encoding UTF8"),
        ("XX001", KeyStoreError, "DataCorrupted, SQLSTATE XX001 (at your service)"),
        ("23514", KeyStoreError, "CheckViolation, SQLSTATE 23514 (constraint or column: see its log)"),
        ("ABCDE", KeyStoreError, "SQLSTATE ABCDE"),
    ],
)
def test_what_the_server_says_is_told(
    server: PostgreSQL, store: KeyStore, table: str, state: str, kind: type[KeyStoreError], words: str
) -> None:
    raising(server, table, f"RAISE EXCEPTION 'at your service' USING ERRCODE = '{state}'")
    assert words in refusal(lambda: store.create("key", VALUE), kind)
    assert list(store.list("")) == []


@pytest.mark.parametrize(
    "statement",
    [
        "RAISE EXCEPTION 'value %', convert_from(NEW.value, 'UTF8')",
        "NEW.value := NULL",  # of which the detail of the error shows the row
        "PERFORM convert_from(NEW.value, 'UTF8')::integer",
    ],
)
def test_an_error_that_shows_the_value_does_not_go_on(
    server: PostgreSQL, store: KeyStore, table: str, statement: str
) -> None:
    raising(server, table, statement)
    said = refusal(lambda: store.create("key", VALUE))
    assert "8f58O260" not in said
    assert VALUE.hex()[:20] not in said


@pytest.mark.parametrize("state", ["40001", "40P01"])
def test_what_the_server_wants_repeated_is_repeated(
    server: PostgreSQL, store: KeyStore, table: str, state: str
) -> None:
    raising(
        server,
        table,
        f"IF nextval('{table}_s') = 1 THEN RAISE EXCEPTION 'again' USING ERRCODE = '{state}'; END IF",
    )
    server.in_kes(f"CREATE SEQUENCE {table}_s; GRANT ALL ON SEQUENCE {table}_s TO kes")
    store.create("key", VALUE)
    assert store.get("key") == VALUE


def test_a_database_that_does_not_keep_what_it_acknowledged_is_a_warning(server: PostgreSQL, open_store: Open) -> None:
    username, password = server.new_user()
    server.admin("GRANT kes TO {}", sql.Identifier(username))
    server.admin("ALTER ROLE {} SET synchronous_commit = off", sql.Identifier(username))
    (warning,) = open_store(credentials__username=username, credentials__password=password).warnings()
    assert "synchronous_commit=off" in warning


def test_a_server_that_turns_read_only_is_told(server: PostgreSQL, store: KeyStore) -> None:
    try:
        server.admin("ALTER SYSTEM SET default_transaction_read_only = on")
        server.admin("SELECT pg_reload_conf()")
        said = ""

        def is_read_only() -> bool:
            nonlocal said
            try:
                store.create(f"key-{time.monotonic_ns()}", VALUE)
            except KeyStoreUnreachable as error:
                said = str(error)
            return bool(said)

        wait_until(is_read_only)
        assert "can only be read" in said
        assert "can only be read" in refusal(store.status, KeyStoreUnreachable)
    finally:
        server.restart_with("default_transaction_read_only = off")
    store.create("key", VALUE)


def test_a_frozen_server_is_told_in_time(server: PostgreSQL, store: KeyStore) -> None:
    store.create("key", VALUE)
    with patch.object(postgresql, "CALL_SECONDS", 1.0), server.frozen():
        assert "did not answer in time" in refusal(lambda: store.create("new", VALUE), KeyStoreUnreachable)
        assert "cannot be reached in time" in refusal(store.status, KeyStoreUnreachable)
    assert store.get("key") == VALUE


# --- restarts ---


def test_a_restart_is_not_noticed_by_the_next_call(server: PostgreSQL, store: KeyStore) -> None:
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda number: store.create(f"key-{number}", VALUE), range(200)))
    server.restart()
    assert store.get("key-1") == VALUE
    server.kill()
    said = refusal(store.status, KeyStoreUnreachable)
    assert "cannot be reached" in said
    server.start()
    store.create("new", VALUE)
    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(lambda number: store.get(f"key-{number}"), range(200))) == {VALUE}


def test_a_crash_under_load_loses_nothing_that_was_acknowledged(server: PostgreSQL, store: KeyStore) -> None:
    created: list[str] = []
    failures: list[Exception] = []
    recovered: set[int] = set()
    started, enough = threading.Event(), threading.Event()

    def create(thread: int) -> None:
        number = 0
        while not enough.is_set():
            number += 1
            name = f"key-{thread}-{number}"
            again = started.is_set()
            try:
                store.create(name, name.encode())
            except KeyStoreUnreachable:
                enough.wait(0.02)
            except Exception as error:
                failures.append(error)
                return
            else:
                created.append(name)
                if again:
                    recovered.add(thread)

    threads = [threading.Thread(target=create, args=(number,), daemon=True) for number in range(32)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(created) > 200)
    server.kill()
    server.start()
    started.set()
    wait_until(lambda: len(recovered) == 32 or failures)
    enough.set()
    for thread in threads:
        thread.join(DEADLINE)
    assert failures == []
    assert set(created) <= set(store.list("key-"))
    for name in created[:: len(created) // 50]:
        assert store.get(name) == name.encode()
    assert server.connections() <= 32


def test_a_server_that_stops_is_away(server: PostgreSQL, store: KeyStore, open_store: Open) -> None:
    store.create("key", VALUE)
    server.stop(signal.SIGTERM, wait=False)  # waits for this store's connection
    said: list[str] = []

    def is_stopping() -> bool:
        try:
            open_store().close()
        except KeyStoreUnreachable as error:
            said.append(str(error))
        return bool(said)

    try:
        wait_until(is_stopping)
        assert "shutting down" in said[0]
        assert store.get("key") == VALUE
    finally:
        store.close()
        server.stop()
        server.start()


def test_a_server_that_starts_is_away(server: PostgreSQL, store: KeyStore) -> None:
    store.create("key", VALUE)
    server.kill()
    with server.recovering():
        assert "starting up" in refusal(store.status, KeyStoreUnreachable)
    assert store.get("key") == VALUE


def test_a_cluster_goes_on_with_the_standby_that_was_promoted(open_store: Open) -> None:
    with PostgreSQL() as primary, PostgreSQL(copy_of=primary) as standby:
        both = {
            "host": "localhost, localhost",
            "port": f"{standby.port},{primary.port}",
            "tls__ca": str(primary.ca),
        }
        store = open_store(**both)
        store.create("key", VALUE)
        assert primary.connections() == 1
        alone = {**both, "host": "localhost", "port": str(standby.port)}
        said = refusal(lambda: open_store(**alone), KeyStoreUnreachable)
        assert "is it a standby?" in said
        wait_until(lambda: standby.in_kes("SELECT to_regclass({}) IS NOT NULL", sql.Literal(store._table)) == [(True,)])  # type: ignore[attr-defined]
        ((position,),) = primary.admin("SELECT pg_current_wal_lsn()::text")
        wait_until(
            lambda: standby.admin("SELECT pg_last_wal_replay_lsn() >= {}::pg_lsn", sql.Literal(position)) == [(True,)]
        )
        primary.kill()
        refusal(store.status, KeyStoreUnreachable)
        assert standby.admin("SELECT pg_promote()") == [(True,)]
        assert store.get("key") == VALUE
        with pytest.raises(KeyExists):
            store.create("key", b"another")
        store.create("new", VALUE)
        store.close()


# --- as the page tells it ---


def test_the_configuration_of_the_page_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, narrow = (text for language, text in BLOCK.findall(section(PAGE, "What to prepare")) if language == "sql")
    ((_, shown),) = (found for found in BLOCK.findall(section(PAGE, "Configuration")) if found[0] == "yaml")
    keystore: dict[str, Any] = yaml.safe_load(shown)["keystore"]
    with PostgreSQL() as database:
        database.admin("DROP DATABASE kes")
        database.admin("DROP ROLE kes")
        for statement in prepare.replace("'choose a long one'", "{}").split(";"):
            if statement.strip():
                database.admin(statement, *[sql.Literal(PASSWORD)] * statement.count("{}"))
        keystore["postgresql"] |= {"host": "localhost", "port": str(database.port), "tls": {"ca": str(database.ca)}}
        with (
            start_server(
                tmp_path, keystore={"fs": None, **keystore}, environment={"KES_DATABASE_PASSWORD": PASSWORD}
            ) as server,
            server.client() as client,
        ):
            assert "PostgreSQL: localhost/kes" in server.stdout
            client.create_key("my-key")
            key = client.generate_key("my-key")
            assert client.decrypt("my-key", key.ciphertext) == key.plaintext
            assert list(client.list_keys()) == ["my-key"]
            database.restart()
            client.create_key("another")
            client.delete_key("my-key")
            with pytest.raises(ClientKeyNotFound):
                client.describe_key("my-key")
            database.in_kes("INSERT INTO kes_keys (name, value) VALUES ('foreign', '\\xff00')")
            with pytest.raises(KeyStoreFailed):
                client.generate_key("foreign")
            assert "failed to read key" in server.line("failed to read key", stream="stderr")
            assert server.stop() == 0
            assert PASSWORD not in server.stdout + server.stderr
        assert database.connections() == 0
        ((columns,),) = database.in_kes(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'kes_keys'::regclass"
        )
        assert columns == "PRIMARY KEY (name)"
        database.in_kes("DROP TABLE kes_keys")
        database.in_kes(narrow)
        store = postgresql.open(database.settings())
        store.create("key", VALUE)
        store.close()
