"""A real PostgreSQL server on a port of 127.0.0.1, with TLS and passwords by SCRAM.

with PostgreSQL() as server:
    store = open({"host": "localhost", "port": str(server.port), "tls.ca": str(server.ca), ...})
    server.admin("REVOKE SELECT ON kes_keys FROM kes")
    server.restart()

It refuses to run as root, so that tests which are root start it as another user, in a folder that this user can enter.
"""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql

from support.certificates import Pair, make
from support.sockets import free_port

USERNAME, DATABASE = "kes", "kes"
PASSWORD = 'it\'s "a" \\ $HOME ${X} host=evil %s p\u00e4ss'
"""Anything may stand in one."""

START_SECONDS = 60.0

_CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{folder}'
max_connections = 80
shared_buffers = 16MB
wal_level = replica
max_wal_senders = 4
ssl = on
ssl_cert_file = '{folder}/server.crt'
ssl_key_file = '{folder}/server.key'
ssl_ca_file = '{folder}/ca.crt'
password_encryption = scram-sha-256
lc_messages = 'C'
"""

_ACCESS = """
local   all          all                          trust
local   replication  all                          trust
hostssl all          certified     127.0.0.1/32   cert
host    all          all           127.0.0.1/32   scram-sha-256
"""


class PostgreSQL:
    """Runs from the beginning of the context to its end. The role `kes` owns the database `kes` then.

    `copy_of`: a server that runs, of which this one is a standby.
    """

    def __init__(self, *, copy_of: "PostgreSQL | None" = None) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="keswick-postgresql-"))
        self.data = self.folder / "data"
        self.authority: Pair = copy_of.authority if copy_of else make("p256", name="authority of the database", ca=True)
        self.ca = self.folder / "ca.crt"
        self._process: subprocess.Popen[bytes] | None = None
        self._user = _user()
        self._copy_of = copy_of

    def __enter__(self) -> "PostgreSQL":
        try:
            pair = make("p256", issuer=self.authority, sans=["localhost"], eku=["server"])
            pair.write(self.folder, "server")
            self.ca.write_bytes(self.authority.cert_pem)
            for path in (self.folder, *self.folder.iterdir()):
                if self._user:
                    shutil.chown(path, self._user, pwd.getpwnam(self._user).pw_gid)
            if self._copy_of:
                options = ("--write-recovery-conf", "--checkpoint=fast", "--no-sync")
                of = ("-h", self._copy_of.folder, "-p", str(self._copy_of.port), "-U", "postgres")
                self._run("pg_basebackup", "-D", self.data, *options, *of)
            else:
                self._run("initdb", "-D", self.data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync")
            # The last of several lines counts.
            configuration = _CONFIGURATION.format(port=self.port, folder=self.folder)
            with (self.data / "postgresql.conf").open("a") as file:
                file.write(configuration)
            (self.data / "pg_hba.conf").write_text(_ACCESS)
            self.start()
            if not self._copy_of:
                self.admin("CREATE ROLE {} LOGIN PASSWORD {}", sql.Identifier(USERNAME), sql.Literal(PASSWORD))
                self.admin("CREATE DATABASE {} OWNER {}", sql.Identifier(DATABASE), sql.Identifier(USERNAME))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def settings(self, **more: str) -> dict[str, str]:
        """Of a store in it; `credentials__username` stands for `credentials.username`."""
        settings = {
            "host": "localhost",
            "port": str(self.port),
            "database": DATABASE,
            "table": "kes_keys",
            "credentials.username": USERNAME,
            "credentials.password": PASSWORD,
            "tls.mode": "verify-full",
            "tls.ca": str(self.ca),
        }
        return settings | {name.replace("__", "."): value for name, value in more.items()}

    # --- the server ---

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it can be used, or at least until it answers that it cannot be yet."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_program("postgres"), "-D", str(self.data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._as_user(),
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._connect("postgres").close()
                return
            except psycopg.OperationalError as error:
                if not wait and "starting up" in str(error):
                    return
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL does not start:\n{self.log}") from error
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGINT, *, wait: bool = True) -> None:
        """Stop it: as operators do (SIGINT), after the last client has gone (SIGTERM), or at once (SIGQUIT)."""
        if self._process is not None:
            self._process.send_signal(number)
            if wait:
                self._process.wait(START_SECONDS)
                self._process = None

    def kill(self) -> None:
        """End it as a crash does; the next start recovers from its log."""
        self.stop(signal.SIGQUIT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def restart_with(self, *lines: str) -> None:
        """With these lines instead of what ALTER SYSTEM has written."""
        self.stop()
        (self.data / "postgresql.auto.conf").write_text("".join(f"{line}\n" for line in lines))
        self.start()

    @contextmanager
    def recovering(self) -> Iterator[None]:
        """Started, after it was stopped, and for now waiting for what an archive shall bring; in the end it runs."""
        settings, signalled = self.data / "postgresql.auto.conf", self.data / "recovery.signal"
        before = settings.read_text()
        settings.write_text("restore_command = 'sleep 20; false'\n")
        signalled.touch()
        if self._user:
            shutil.chown(signalled, self._user)
        try:
            self.start(wait=False)
            yield
        finally:
            self.kill()
            settings.write_text(before)
            signalled.unlink()
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes are there, and do nothing."""
        assert self._process is not None
        stopped: list[int] = []
        try:
            for pid in (self._process.pid, *_children(self._process.pid)):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
            yield
        finally:
            for pid in reversed(stopped):
                os.kill(pid, signal.SIGCONT)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    # --- its operator ---

    def admin(self, statement: str, *parts: sql.Composable, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as the superuser; `parts` are put in where `{}` stands. The rows it brings."""
        with self._connect(database) as connection:
            # A statement of a test, which mypy takes for one of a stranger.
            cursor = connection.execute(sql.SQL(statement).format(*parts))
            return cursor.fetchall() if cursor.description else []

    def in_kes(self, statement: str, *parts: sql.Composable) -> list[tuple[Any, ...]]:
        """The same in the database of keys."""
        return self.admin(statement, *parts, database=DATABASE)

    def connections(self, username: str = USERNAME) -> int:
        ((count,),) = self.admin("SELECT count(*) FROM pg_stat_activity WHERE usename = {}", sql.Literal(username))
        return int(count)

    def end_connections(self, username: str = USERNAME) -> None:
        """End all of that user, and wait until they have gone."""
        self.admin(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = {}", sql.Literal(username)
        )

    def new_user(self) -> tuple[str, str]:
        """Name and password of a user who may connect and nothing else."""
        username, password = f"user_{secrets.token_hex(4)}", secrets.token_urlsafe(12)
        self.admin("CREATE ROLE {} LOGIN PASSWORD {}", sql.Identifier(username), sql.Literal(password))
        return username, password

    def certificate(self, username: str, folder: Path, *, issuer: Pair | None = None) -> dict[str, str]:
        """Settings with which that user logs in by certificate."""
        pair = make("p256", name=username, issuer=issuer or self.authority, eku=["client"])
        cert, key = pair.write(folder, f"client-{secrets.token_hex(4)}")
        return {"tls.cert": str(cert), "tls.key": str(key)}

    def _connect(self, database: str) -> "psycopg.Connection[tuple[Any, ...]]":
        return psycopg.connect(
            host=str(self.folder), port=self.port, user="postgres", dbname=database, autocommit=True, connect_timeout=30
        )

    def _run(self, program: str, *arguments: "str | Path") -> None:
        done = subprocess.run([_program(program), *arguments], capture_output=True, text=True, **self._as_user())
        if done.returncode:
            raise RuntimeError(f"{program} failed:\n{done.stdout}\n{done.stderr}")

    def _as_user(self) -> dict[str, Any]:
        if not self._user:
            return {"cwd": self.folder}
        group = pwd.getpwnam(self._user).pw_gid
        return {"cwd": self.folder, "user": self._user, "group": group, "extra_groups": []}


class TCPProxy:
    """Forwards connections to a port of 127.0.0.1, and does to them what a test says.

    `refused`: nobody listens, and who is connected is cut off; `hanging`: nothing is forwarded any more; `lost`: what
    the server answers is dropped, and the connection ends; `cut` and `garbage`: nothing is carried out, and the
    beginning of an answer arrives before the connection ends, or something else.
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.fault: str | None = None
        self.made = 0
        """How many connections there were."""
        self.answered: Callable[[], object] = lambda: None
        """Called when the server has answered what is then lost."""
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "TCPProxy":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._released.set()
        self._close()

    @contextmanager
    def on(self, fault: str) -> Iterator[None]:
        self._released.clear()
        self.fault = fault
        if fault == "refused":
            self._close()
        try:
            yield
        finally:
            self.fault = None
            self._released.set()
            if fault == "refused":
                self._listen(self.port)

    def _listen(self, port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._thread.start()

    def _close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.upstream), 10)
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._sockets |= {client, server}
                    self.made += 1
                for pair in ((client, server), (server, client)):
                    pair[0].settimeout(None)
                    pair[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                one = threading.Thread(target=self._forward, args=(client, server, False), daemon=True)
                one.start()
                threading.Thread(target=self._end_after, args=(client, server, one), daemon=True).start()

    def _end_after(self, client: socket.socket, server: socket.socket, other: threading.Thread) -> None:
        self._forward(server, client, True)
        other.join()
        with self._lock:
            self._sockets -= {client, server}
        client.close()
        server.close()

    def _forward(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                match self.fault:
                    case "hanging":
                        self._released.wait(60)
                        break
                    case "lost" if is_answer:
                        self.answered()
                        break
                    case "cut" if not is_answer:
                        source.sendall(b"\x17\x03\x03\x01")  # of a record of TLS
                        break
                    case "garbage" if not is_answer:
                        source.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                        break
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _program(name: str) -> str:
    """Debian has the server's programs in a folder for each version, beside the PATH."""
    found = shutil.which(name)
    newest = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    if found is None and not newest:
        raise FileNotFoundError(f"the tests need PostgreSQL, whose program '{name}' is not here: make programs")
    return str(newest[-1]) if newest else str(found)


def _user() -> str | None:
    """As whom to run it, where the tests run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
