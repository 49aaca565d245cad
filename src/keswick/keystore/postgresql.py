"""PostgreSQL as a key store: one table with a row for each key, by its name.

That a name is taken the database says itself, by the table's primary key, so that of several servers which create one
name exactly one wins. Each call is one statement, which is a transaction of its own and durable when it is answered.

Connections are made in the threads that call, when there is no idle one: a failure reaches the caller at once and with
its cause, and a database that is back is used by the next call. A thread that watches over them is not needed.
"""

import math
import os
import re
import select
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from keswick import roots
from keswick.keystore.contract import KeyExists, KeyNotFound, KeyStore, KeyStoreError, KeyStoreUnreachable, NotAKey
from keswick.keystore.section import CA, PEM_FILE, TEXT, Setting, Shape
from keswick.keystore.tls import load_pair, versions
from keswick.names import is_stored_name

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql
    from psycopg.abc import PQGen

T = TypeVar("T")

SHAPE = Shape(
    required=("host", "database", "credentials"),
    defaults={"port": "5432", "table": "kes_keys"},
    sections={
        "credentials": Shape(required=("username",), optional=("password",)),
        "tls": Shape(
            optional=("key", "cert", "ca"),
            defaults={"mode": "verify-full"},
            choices={"mode": ("verify-full", "off")},
            together=("key", "cert"),
        ),
    },
)

SETTINGS = (
    Setting(
        "host",
        "of the server, or the folder of its Unix socket. Several, with commas between them, are the servers of one "
        "cluster: the first one that can write is used",
        TEXT,
        "db1.example.com,db2.example.com",
        needed="",
        own=True,
    ),
    Setting("port", "of the server, or one for each host, with commas between them", TEXT, "6432", "5432", own=True),
    Setting("database", "in which the table is", "name", "kes", needed="", own=True),
    Setting(
        "table",
        "of the keys, perhaps with its schema, in small letters; it is made if it does not exist",
        "name",
        "kes.kes_keys",
        "kes_keys",
        own=True,
    ),
    Setting("credentials.username", "of the role that logs in", TEXT, "kes", needed="", own=True),
    Setting(
        "credentials.password",
        "of that role",
        TEXT,
        "${KES_DATABASE_PASSWORD}",
        otherwise="none: the role logs in by its certificate, or as the server is told to trust it",
        own=True,
    ),
    Setting(
        "tls.mode",
        "whether the server must show a certificate that is trusted and names its host. `off`: what is sent, keys too, "
        "can be read on the way",
        "`verify-full` or `off`",
        "off",
        "verify-full",
        own=True,
    ),
    Setting("tls.key", "private key of the client", PEM_FILE, "/etc/kes/db.key", needed="tls.cert", own=True),
    Setting("tls.cert", "certificate of the client", PEM_FILE, "/etc/kes/db.crt", needed="tls.key", own=True),
    CA._replace(meaning="whom alone to trust as the server's authority", otherwise="whom the system trusts", own=True),
)

MAX_VALUE = 1 << 20
"""Bytes. What is larger is no key."""
MOST_CONNECTIONS = 32
"""As many as the server has threads for its key store."""
CONNECT_SECONDS = 5
"""For one address of one host."""
IDLE_SECONDS = 60.0
"""After which an idle connection is closed, and not used again."""
CALL_SECONDS = 12.0
"""For one call with all that it has to wait for: less than the 15 seconds that the server's clients wait."""
STATEMENT_SECONDS = 10
"""For one statement, at the server, so that none is left behind there when its caller has gone."""
MOST_NAMES = 10_000
"""That are fetched at once."""

_TEXT_TYPES, _BYTES_TYPE = (25, 1043), 17
"""What PostgreSQL calls the types text, varchar and bytea."""

_TABLE = re.compile(r"(?:([a-z_][a-z0-9_]{0,62})\.)?([a-z_][a-z0-9_]{0,62})").fullmatch


def open(settings: Mapping[str, str]) -> KeyStore:
    return PostgreSQLStore(settings)


class PostgreSQLStore(KeyStore):
    """Keys in a table, which is made when it is not there and the role may do so.

    Raises KeyStoreError when a setting is wrong, the database cannot be used, or the table is not one of keys.
    """

    atomic_create = True

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.description = f"PostgreSQL: {settings['host']}/{settings['database']}"
        self._username, self._table = settings["credentials.username"], settings["table"]
        self._sql = _statements(self._table, self._username)
        self._grant = self._sql["grant"].as_string()
        self._by_hand = f"{self._sql['make'].as_string()}; {self._grant};"
        self._server = _Server(settings)
        self._pool = _Pool(self._server.connect)
        try:
            self._see_to_the_table()
        except BaseException:
            self.close()
            raise

    def status(self) -> float:
        started = time.perf_counter()
        self._run("look")
        return time.perf_counter() - started

    def create(self, name: str, value: bytes) -> None:
        if not is_stored_name(name):
            raise KeyStoreError(f"{name!r} cannot be the name of a key")
        if len(value) > MAX_VALUE:
            raise KeyStoreError(f"'{name}' cannot be kept: what is larger than {MAX_VALUE} bytes is no key")
        done = self._run("create", name, value)
        if done.count == 0 and not (done.repeated and self._is_kept(name, value)):
            raise KeyExists(name)

    def get(self, name: str) -> bytes:
        if not is_stored_name(name):
            raise KeyNotFound(name)
        rows = self._run("get", MAX_VALUE, name).rows
        if not rows:
            raise KeyNotFound(name)
        ((value, size),) = rows
        if value is None:
            why = "its value is NULL" if size is None else f"it is larger than {MAX_VALUE} bytes"
            raise NotAKey(f"'{name}' in the table '{self._table}' is no key: {why}; move the row away")
        return bytes(value)

    def delete(self, name: str) -> None:
        if not is_stored_name(name):
            raise KeyNotFound(name)
        done = self._run("delete", name)
        if done.count == 0 and not done.repeated:
            raise KeyNotFound(name)

    def list(self, prefix: str) -> Iterator[str]:
        """Fetches many names at a time, and holds no connection between."""
        if not is_stored_name(prefix) and not is_stored_name(f"{prefix}x"):
            return  # no name begins so
        last = ""
        while True:
            names = [name for (name,) in self._run("list", prefix, last, MOST_NAMES).rows]
            yield from filter(is_stored_name, names)
            if len(names) < MOST_NAMES:
                return
            last = names[-1]

    def warnings(self) -> Sequence[str]:
        found = []
        if self._server.is_exposed:
            found.append(f"{self._server} is called without TLS: whoever is on the way there can read the keys")
        ((commit, fsync),) = self._run("durability").rows
        if "off" in (commit, fsync):
            setting = "fsync" if fsync == "off" else "synchronous_commit"
            found.append(f"{self._server} runs with {setting}=off: a new key may be lost when it crashes; turn it on")
        return found

    def close(self) -> None:
        self._pool.close()
        self._server.close()

    def _is_kept(self, name: str, value: bytes) -> bool:
        try:
            return self.get(name) == value
        except KeyNotFound:
            return False

    def _see_to_the_table(self) -> None:
        try:
            name, value = self._run("look").columns
        except _NoTable:
            self._make_table()
            name, value = self._run("look").columns
        if name not in _TEXT_TYPES or value != _BYTES_TYPE:
            raise self._unfit("'name' must be text and 'value' bytea")

    def _make_table(self) -> None:
        import psycopg

        try:
            self._try("make", (), time.monotonic() + CALL_SECONDS)
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.InvalidSchemaName) as error:
            raise KeyStoreError(
                f"{self._server} has no table '{self._table}', and '{self._username}' cannot make it "
                f"({error.diag.message_primary}); run as the database's owner: {self._by_hand}"
            ) from None
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject):
            pass  # another server was faster
        except psycopg.Error as error:
            raise self._failure(error) from None

    def _run(self, statement: str, *parameters: object) -> "_Done":
        """Run a statement; once more, if its connection was lost, or the database wants it to be repeated.

        An error of psycopg may show what was sent, such as the row that violates a constraint: it is not chained.
        """
        import psycopg

        deadline = time.monotonic() + CALL_SECONDS
        try:
            return self._try(statement, parameters, deadline)
        except psycopg.Error as error:
            if not _is_worth_another_try(error):
                raise self._failure(error) from None
            self._pool.clear()  # what happened to one connection has happened to the others
        try:
            return replace(self._try(statement, parameters, deadline), repeated=True)
        except psycopg.Error as error:
            raise self._failure(error) from None

    def _try(self, statement: str, parameters: Sequence[object], deadline: float) -> "_Done":
        with self._pool.connection(deadline) as connection:
            try:
                cursor = connection.execute(self._sql[statement], parameters or None)
            except TimeoutError:
                raise KeyStoreUnreachable(f"{self._server} did not answer in time") from None
            columns = tuple(column.type_code for column in cursor.description or ())
            return _Done(columns, cursor.fetchall() if columns else (), cursor.rowcount)

    def _failure(self, error: "psycopg.Error") -> KeyStoreError:
        where, said = self._server, error.diag.message_primary
        match error.sqlstate:
            case None:
                return KeyStoreUnreachable(f"{where} ended the connection without an answer")
            case "42P01" | "3F000":
                return _NoTable(
                    f"{where} has no table '{self._table}': restore it from a backup, or, for an empty one, run as "
                    f"the database's owner: {self._by_hand}"
                )
            case "42501":
                return KeyStoreError(
                    f"{where} denies it to '{self._username}' ({said}); run as the table's owner: {self._grant}"
                )
            case "42703" | "42804" | "42883" | "42P10":
                return self._unfit(f"{said}")
            case "25006":
                return KeyStoreUnreachable(f"{where} can only be read: is it a standby, or made read-only?")
            case "57014" | "55P03":
                return KeyStoreUnreachable(
                    f"{where} gave up what it did not finish in time ({said}): is the table locked, or a disk slow?"
                )
            case "53100":
                return KeyStoreError(f"{where} has a full disk: make room there")
            case "22P05" | "22021":
                return KeyStoreError(f"{where} cannot keep such a name: only a database with the encoding UTF8 can")
            case state if state[:2] in _AWAY:
                return KeyStoreUnreachable(f"{where} is stopping, starting, or overloaded ({said})")
            case state if state[:2] in _TELLING:
                said = f"constraint or column: {error.diag.constraint_name or error.diag.column_name or 'see its log'}"
        return KeyStoreError(f"{where} failed: {type(error).__name__}, SQLSTATE {error.sqlstate} ({said})")

    def _unfit(self, why: str) -> KeyStoreError:
        return KeyStoreError(
            f"{self._server}: the table '{self._table}' is not one of keys ({why}): name another one, or make it as "
            f"this does: {self._by_hand}"
        )


_AWAY = ("08", "53", "57")
"""Classes of SQLSTATE: the connection failed, there is no room for it, an operator stopped the server."""
_TELLING = ("22", "23", "P0")
"""Classes of SQLSTATE whose words may show what was sent."""
_TRY_AGAIN = {"25006", "40001", "40P01", "57P01", "57P02", "57P03"}
"""Another server can be written now; the database gave it up because of others; the server goes."""


def _is_worth_another_try(error: "psycopg.Error") -> bool:
    import psycopg

    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)  # the connection was lost
    return state in _TRY_AGAIN or state.startswith("08")


class _NoTable(KeyStoreError):
    pass


@dataclass(frozen=True, slots=True)
class _Done:
    """What came of a statement."""

    columns: tuple[int, ...]
    """Their types."""
    rows: Sequence[tuple[Any, ...]] = field(repr=False)
    count: int
    """Of rows that it touched."""
    repeated: bool = False
    """Whether an earlier try may have been carried out, though its answer did not arrive."""


def _statements(table: str, username: str) -> "Mapping[str, sql.Composed]":
    """All that is sent, and `grant` for an operator. Raises KeyStoreError for what names no table."""
    from psycopg import sql

    found = _TABLE(table)
    if found is None:
        raise KeyStoreError(
            f"the key store 'postgresql': the table '{table}' cannot be used: write TABLE or SCHEMA.TABLE, in small "
            "letters, digits and '_'"
        )
    names = {
        "table": sql.Identifier(*filter(None, found.groups())),
        "role": sql.Identifier(username),
    }
    statements = {
        "look": "SELECT name, value FROM {table} LIMIT 0",
        "create": "INSERT INTO {table} (name, value) VALUES (%s::text, %s::bytea) ON CONFLICT (name) DO NOTHING",
        "get": "SELECT CASE WHEN length(value) <= %s THEN value END, length(value) FROM {table} WHERE name = %s::text",
        "delete": "DELETE FROM {table} WHERE name = %s::text",
        "list": "SELECT name FROM {table} WHERE starts_with(name, %s::text) AND name > %s::text ORDER BY name LIMIT %s",
        "durability": "SELECT current_setting('synchronous_commit'), current_setting('fsync')",
        "make": (
            'CREATE TABLE IF NOT EXISTS {table} (name text COLLATE "C" PRIMARY KEY, value bytea NOT NULL, '
            "created_at timestamptz NOT NULL DEFAULT now())"
        ),
        "grant": "GRANT SELECT, INSERT, DELETE ON {table} TO {role}",
    }
    return {name: sql.SQL(text).format(**names) for name, text in statements.items()}


class _Pool:
    """Connections, made when they are needed and used again, the last used one first, so that those of a burst become
    idle; an idle one is closed after a while, or when the server has let go of it."""

    def __init__(self, connect: Callable[[float], "_Connection"]) -> None:
        self._connect = connect
        self._free = threading.Semaphore(MOST_CONNECTIONS)
        self._lock = threading.Lock()
        self._idle: list[tuple[_Connection, float]] = []
        """With the time since which each is idle."""
        self._closed = False

    @contextmanager
    def connection(self, deadline: float) -> Iterator["_Connection"]:
        """One that nobody else has, and whose waits end at the deadline with TimeoutError."""
        if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise KeyStoreUnreachable(f"all {MOST_CONNECTIONS} connections to the key store 'postgresql' are in use")
        try:
            connection = self._taken() or self._connect(deadline)
            connection.deadline = deadline
            try:
                yield connection
            finally:
                self._give_back(connection)
        finally:
            self._free.release()

    def clear(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop()[0].close()

    def close(self) -> None:
        """Also those that are in use now, when they are given back."""
        self._closed = True
        self.clear()

    def _taken(self) -> "_Connection | None":
        with self._lock:
            if self._closed:
                raise KeyStoreError("the key store 'postgresql' is closed")
            while self._idle:
                connection, since = self._idle.pop()
                if time.monotonic() - since < IDLE_SECONDS and connection.is_quiet():
                    return connection
                connection.close()
        return None

    def _give_back(self, connection: "_Connection") -> None:
        now = time.monotonic()
        with self._lock:
            while self._idle and now - self._idle[0][1] >= IDLE_SECONDS:
                self._idle.pop(0)[0].close()
            if connection.is_free() and not self._closed:
                self._idle.append((connection, now))
            else:
                connection.close()


class _Connection(Protocol):
    deadline: float
    """When waiting for the server ends with TimeoutError, as time.monotonic() tells it."""

    def execute(self, query: "sql.Composed", params: Sequence[object] | None) -> "psycopg.Cursor[Any]": ...

    def is_free(self) -> bool:
        """Whether it can be used for another statement."""

    def is_quiet(self) -> bool:
        """Whether the server has sent nothing since: what it sends to an idle connection is that it ends."""

    def close(self) -> None: ...


@cache
def _connection_class() -> "type[psycopg.Connection[Any]]":
    import psycopg

    class Connection(psycopg.Connection[Any]):
        deadline = math.inf

        def wait(self, gen: "PQGen[T]", *arguments: Any, **options: Any) -> T:
            # Time limits of the server and of TCP do not end the wait for a server that is there but does nothing.
            return super().wait(_until(gen, self.deadline), *arguments, **options)

        def is_free(self) -> bool:
            return not self.closed and self.pgconn.transaction_status == psycopg.pq.TransactionStatus.IDLE

        def is_quiet(self) -> bool:
            poll = select.poll()
            poll.register(self.fileno(), select.POLLIN)
            return not poll.poll(0)

    return Connection


def _until(steps: "PQGen[T]", deadline: float) -> "PQGen[T]":
    """The same steps of waiting, which are taken every tenth of a second at least, until the deadline."""
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if time.monotonic() > deadline:
                raise TimeoutError
            wanted = steps.send(ready)
    except StopIteration as end:
        result: T = end.value
        return result


class _Server:
    """One server or several of a cluster, as libpq is told of them; what keeps them from being used is said in words.

    Raises KeyStoreError when a setting is wrong.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        hosts = [host.strip() for host in settings["host"].split(",")]
        ports = [port.strip() for port in settings["port"].split(",")]
        self._hosts, self._count = ",".join(hosts), len(hosts)
        self._database, self._username = settings["database"], settings["credentials.username"]
        self._password = settings.get("credentials.password", "")
        if not all(hosts) or "://" in self._hosts:
            raise KeyStoreError(f"{self}: the host is no name or address: write HOST or HOST,HOST")
        if not all(re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65536 for port in ports):
            raise KeyStoreError(f"{self}: the port '{settings['port']}' is not a number from 1 to 65535")
        if len(ports) not in (1, len(hosts)):
            raise KeyStoreError(f"{self}: there are {len(hosts)} hosts and {len(ports)} ports: write one port for each")
        for key in ("database", "credentials.username", "credentials.password"):
            if not _is_text(settings.get(key, "")):
                raise KeyStoreError(f"{self}: '{key}' cannot be used: it holds a zero byte, or is not UTF-8")
        is_local = [_is_local(host) for host in hosts]
        is_off = settings["tls.mode"] == "off"
        self.is_exposed = is_off and not all(is_local)
        self._parameters: dict[str, Any] = {
            "host": self._hosts,
            "port": ",".join(ports),
            "dbname": self._database,
            "user": self._username,
            "target_session_attrs": "read-write",
            "application_name": "keswick",
            "client_encoding": "UTF8",
            "gssencmode": "disable",
            "sslmode": "disable" if is_off else "verify-full",
            # A peer that is gone without a word is noticed.
            "keepalives_idle": 20,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 6000,
            "options": f"-c statement_timeout={STATEMENT_SECONDS}s",
            "autocommit": True,
            "prepare_threshold": None,  # connections of pgbouncer do not keep prepared statements
        }
        if self._password:
            self._parameters["password"] = self._password
        if "tls.cert" in settings:
            self._parameters |= {"sslcert": settings["tls.cert"], "sslkey": settings["tls.key"]}
            # libpq passes over a certificate that is not there, and reads both whenever it connects.
            load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), str(self), settings["tls.cert"], settings["tls.key"])
        self._authorities: int | None = None
        self._ca = settings.get("tls.ca")
        self._versions = versions([self._ca] if self._ca else [])
        self._renewal = threading.Lock()
        if not is_off and not all(host.startswith(("/", "@")) for host in hosts):
            # libpq reads a file whenever it connects. This one needs no place on a disk.
            self._authorities = _file_of(self._trusted())
            self._parameters["sslrootcert"] = f"/proc/self/fd/{self._authorities}"

    def __str__(self) -> str:
        return f"the key store 'postgresql' at '{self._hosts}'"

    def connect(self, deadline: float) -> _Connection:
        """Raises KeyStoreUnreachable and KeyStoreError."""
        import psycopg

        self._renew()
        # Names may have two addresses, and each is tried for so long.
        seconds = int(max(2, min(CONNECT_SECONDS, (deadline - time.monotonic()) / 2 / self._count)))
        try:
            return _connection_class().connect(**self._parameters, connect_timeout=seconds)  # type: ignore[return-value]
        except psycopg.Error as error:
            text = str(error)
        if "unsupported startup parameter" in text and self._parameters["options"]:
            self._parameters["options"] = ""  # pgbouncer takes none
            return self.connect(deadline)
        raise self._no_connection(text)

    def close(self) -> None:
        with self._renewal:
            if self._authorities is not None:
                os.close(self._authorities)
                self._authorities = None

    def _renew(self) -> None:
        """Trust the authorities of `tls.ca` as they are on disk now. What cannot be used, such as half of a renewal,
        leaves those that were read before in force."""
        with self._renewal:
            if self._ca is None or self._authorities is None:
                return
            found = versions([self._ca])
            if found == self._versions:
                return
            with suppress(KeyStoreError):
                renewed = _file_of(self._trusted())
                os.dup2(renewed, self._authorities, inheritable=False)  # at once, for who opens it now
                os.close(renewed)
                self._versions = found

    def _no_connection(self, text: str) -> KeyStoreError:
        """What libpq or the server said, in words for an operator. Before there is a connection it has no SQLSTATE."""
        told = {line: line.rpartition(" failed: ")[2] for line in text.splitlines()}
        if self._password:  # no word of it, also where it is that of something else
            told = {line: said.replace(self._password, "...") for line, said in told.items()}
        for pattern, kind, words in _REFUSALS:
            for line, said in told.items():
                if re.search(pattern, line):
                    return kind(f"{self} {words.format(said=said, database=self._database, username=self._username)}")
        said = next(iter(told.values()), "no reason was given")
        kind = KeyStoreError if _SERVER_SAID(said) else KeyStoreUnreachable
        return kind(f"{self} cannot be used: {said}")

    def _trusted(self) -> bytes:
        """PEM of the authorities in a file or a folder, else of those of the system."""
        ca = self._ca
        try:
            found = list(roots.certificates(Path(ca)) if ca else roots.system())
        except (OSError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) else error
            raise KeyStoreError(f"{self}: tls.ca '{ca}' cannot be used: {words}") from error
        context, usable = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), []
        for der in found:
            with suppress(ssl.SSLError):  # one that OpenSSL does not know, which would spoil the others
                context.load_verify_locations(cadata=der)
                usable.append(ssl.DER_cert_to_PEM_cert(der))
        if not usable:
            where = f"tls.ca '{ca}' holds no certificate in PEM form" if ca else "the system trusts nobody: set tls.ca"
            raise KeyStoreError(f"{self}: {where}")
        return "".join(usable).encode()


_REFUSALS: tuple[tuple[str, type[KeyStoreError], str], ...] = (
    (
        "certificate authentication failed|alert .*(certificate|ca)\\b|requires a valid client certificate",
        KeyStoreError,
        "does not accept the client's certificate ({said}): look at tls.cert and tls.key, of which the common name is "
        "'{username}', and at ssl_ca_file there",
    ),
    (
        "authentication failed|no password supplied|no such user|not permitted to log in|role .* does not exist",
        KeyStoreError,
        "does not let '{username}' in ({said}): look at credentials.username and credentials.password",
    ),
    (
        "pg_hba.conf",
        KeyStoreError,
        "does not let '{username}' in from here ({said}): add a line to its pg_hba.conf",
    ),
    (
        "database .* does not exist|no such database",
        KeyStoreError,
        "has no database '{database}': look at the setting 'database', or make it: CREATE DATABASE",
    ),
    (
        "permission denied for database",
        KeyStoreError,
        "does not let '{username}' into the database '{database}': GRANT CONNECT ON DATABASE to it",
    ),
    (
        "private key|(?<!root )certificate file",
        KeyStoreError,
        "was not called, because tls.cert or tls.key cannot be used: {said}",
    ),
    (
        "certificate verify failed",
        KeyStoreUnreachable,
        "shows a certificate that is not trusted ({said}): is it valid, and 'tls.ca' the authority that issued it?",
    ),
    (
        "does not match host name|host name from server certificate",
        KeyStoreUnreachable,
        "shows a certificate of another host ({said}): write the host as its certificate has it",
    ),
    (
        "does not support SSL",
        KeyStoreError,
        "offers no TLS: turn ssl on there; one on this machine can be used without, by 'tls.mode: off'",
    ),
    (
        "too many (clients|connections)|connection slots|no more connections",
        KeyStoreUnreachable,
        "has no connection left ({said}): raise its limit, or close others",
    ),
    (
        "starting up|shutting down|recovery mode|not \\w+ accepting connections",
        KeyStoreUnreachable,
        "is starting, stopping, or closed to clients ({said})",
    ),
    (
        "read-only|hot standby",
        KeyStoreUnreachable,
        "can only be read, and keys are written: is it a standby? Name all hosts of the cluster",
    ),
    (
        "failed to resolve|could not translate",
        KeyStoreUnreachable,
        "cannot be found: its host name is not known; look at the setting 'host' and at DNS",
    ),
    (
        "refused|No route|unreachable|No such file",
        KeyStoreUnreachable,
        "cannot be reached ({said}): is it running, and are host and port right?",
    ),
    (
        "timeout",
        KeyStoreUnreachable,
        "cannot be reached in time: a firewall, or a wrong host?",
    ),
    (
        "invalid response to SSL negotiation|lost synchronization|expected authentication request",
        KeyStoreError,
        "answers with what PostgreSQL does not say: are host and port right?",
    ),
)
"""What is to be found in the words, what it means, and what to do; the more special first, since several hosts may
have failed for several reasons."""

_SERVER_SAID = re.compile(r"\w+:  ").match
"""It puts a severity before its words, in its own language."""


def _file_of(content: bytes) -> int:
    file = os.memfd_create("keswick-authorities")
    with os.fdopen(file, "wb", closefd=False) as writer:
        writer.write(content)
    return file


def _is_local(host: str) -> bool:
    """Whether nobody is on the way to it."""
    if host.startswith(("/", "@")) or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_text(text: str) -> bool:
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False
