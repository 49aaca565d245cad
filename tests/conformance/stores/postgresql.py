"""A real server, behind a proxy of TCP: a table for each store."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from unittest.mock import patch

from psycopg import sql

from conformance.stores import HANGING_SECONDS, Fault, Service
from keswick.keystore import KeyStore, postgresql
from support.postgresql import PostgreSQL, TCPProxy


@contextmanager
def start(folder: Path) -> Iterator[Service]:
    with PostgreSQL() as server, TCPProxy(server.port) as proxy:
        numbers = count()
        tables: list[str] = []

        def new_store(folder: Path) -> KeyStore:
            tables.append(f"keys_{next(numbers)}")
            return postgresql.open(server.settings(port=str(proxy.port), table=tables[-1]))

        def on_the_way(name: str) -> Fault:
            @contextmanager
            def on() -> Iterator[None]:
                seconds = HANGING_SECONDS if name == "hanging" else 1.0
                with patch.object(postgresql, "CALL_SECONDS", seconds), proxy.on(name):
                    yield

            return on

        def at_the_server(begin: str, end: str, *, to_new_connections: bool = False) -> Fault:
            def run(statement: str) -> None:
                table = sql.Identifier(tables[-1])
                server.in_kes(statement, *[table] * statement.count("{}"))

            @contextmanager
            def on() -> Iterator[None]:
                run(begin)
                if to_new_connections:
                    server.end_connections()
                try:
                    yield
                finally:
                    run(end)

            return on

        def plant(name: str) -> None:
            table = sql.Identifier(tables[-1])
            server.in_kes("ALTER TABLE {} ALTER COLUMN value DROP NOT NULL", table)
            server.in_kes("INSERT INTO {} (name, value) VALUES ({}, NULL)", table, sql.Literal(name))

        yield Service(
            new_store,
            {
                **{name: on_the_way(name) for name in ("refused", "lost", "hanging", "cut", "garbage")},
                "denied": at_the_server("REVOKE ALL ON {} FROM kes", "GRANT ALL ON {} TO kes"),
                "troubled": at_the_server("ALTER TABLE {} RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO {}"),
                "wrong": at_the_server(
                    "ALTER TABLE {} RENAME COLUMN name TO key", "ALTER TABLE {} RENAME COLUMN key TO name"
                ),
                "throttled": at_the_server(
                    "ALTER ROLE kes CONNECTION LIMIT 0", "ALTER ROLE kes CONNECTION LIMIT -1", to_new_connections=True
                ),
                "away": at_the_server(
                    "ALTER ROLE kes SET default_transaction_read_only = on",
                    "ALTER ROLE kes RESET default_transaction_read_only",
                    to_new_connections=True,
                ),
            },
            plant=plant,
        )


SERVICES = {"postgresql": start}
