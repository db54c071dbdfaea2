"""The database: engines, transactions and the clock, the same for SQLite and PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from sqlalchemy import BigInteger, Engine, create_engine, event, text
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from service.errors import DatabaseUnavailable, StorageFull

SECOND: Final = 1_000_000
"""Microseconds in a second: all stored times are microseconds since 1970 (UTC)."""

BUSY_TIMEOUT_MS: Final = 30_000
_READ_ONLY: Final = "secateur_read_only"
_DEFECTS: Final = ("no such", "readonly database", "syntax error", "has no column")


class now(FunctionElement[int]):
    """Microseconds since 1970 by the clock of the database, at the moment the row is looked at.

    On SQLite the clock has a resolution of one millisecond.
    """

    type = BigInteger()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **options: Any) -> str:
    return (
        "(CAST(strftime('%s', 'now') AS INTEGER) * 1000000"
        " + CAST(substr(strftime('%f', 'now'), 4, 3) AS INTEGER) * 1000)"
    )


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **options: Any) -> str:
    # clock_timestamp, not now(): a statement that waited for a lock must not judge leases by an old time.
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"


def microseconds(seconds: float) -> int:
    """Seconds as whole microseconds."""
    return round(seconds * SECOND)


def normalise_url(url: str) -> URL:
    """The SQLAlchemy URL of a user's database URL, with the driver this service uses."""
    parsed = make_url(url)
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "sqlite":
        return parsed.set(drivername="sqlite+pysqlite")
    return parsed


def _serialise(value: Any) -> str:
    # NaN is no JSON; PostgreSQL would refuse it later and SQLite would keep it.
    return json.dumps(value, allow_nan=False, ensure_ascii=True, separators=(",", ":"))


def create_database_engine(url: str, *, pool_size: int = 10) -> Engine:
    """An engine with the pragmas and isolation that the service relies on.

    SQLite: WAL, synchronous FULL (a commit survives power loss), foreign keys, 30 s of patience with other
    writers. PostgreSQL: READ COMMITTED whatever the role's default, and connections tested before use.
    """
    parsed = normalise_url(url)
    create = partial(
        create_engine, parsed, json_serializer=_serialise, pool_pre_ping=True, pool_size=pool_size
    )
    if parsed.get_backend_name() == "sqlite":
        engine = create(
            max_overflow=64, connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create(max_overflow=32, isolation_level="READ COMMITTED", connect_args={"connect_timeout": 10})


def _prepare_sqlite(connection: Any, record: Any) -> None:
    # The driver must not open transactions by itself: it would begin them deferred, and a deferred
    # transaction that turns to writing fails at once instead of waiting for its turn.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    read_only = bool(connection.get_execution_options().get(_READ_ONLY))
    connection.exec_driver_sql(f"PRAGMA query_only = {int(read_only)}")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _is_full(error: DBAPIError) -> bool:
    message = str(error.orig).lower()
    return "disk is full" in message or "no space left" in message or "could not extend file" in message


def _is_defect(error: DBAPIError) -> bool:
    """SQLite reports wrong statements as operational errors too; trying again does not help there."""
    message = str(error.orig).lower()
    return any(words in message for words in _DEFECTS)


class Database:
    """Access to one database; one instance per process, shared by its threads.

    Not to be carried over a fork: create it in the child.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.engine = create_database_engine(url, pool_size=pool_size)
        options: dict[str, Any] = {_READ_ONLY: True}
        if self.engine.dialect.name == "postgresql":
            options |= {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}
        self._reading = self.engine.execution_options(**options)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One writing transaction: committed at the end of the block, rolled back when the block raises.

        Raises:
            DatabaseUnavailable: the database does not answer, stayed locked, or chose this transaction as the
                victim of a deadlock. Nothing was written, unless only the answer to the commit was lost.
            StorageFull: the database has no space left.
        """
        with self._transaction(self.engine) as session:
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """One reading transaction: sees one state of the database, waits for no writer, refuses writes."""
        with self._transaction(self._reading) as session:
            yield session

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Session]:
        try:
            with Session(engine, expire_on_commit=False) as session, session.begin():
                yield session
        except (OperationalError, InterfaceError) as error:
            if _is_full(error):
                raise StorageFull("the database has no space left") from error
            if _is_defect(error):
                raise
            raise DatabaseUnavailable("the database does not answer; try again") from error
        except PoolTimeout as error:
            raise DatabaseUnavailable("all connections to the database are in use; try again") from error

    def ping(self) -> None:
        """Raises `DatabaseUnavailable` unless the database answers."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def dispose(self) -> None:
        """Closes all connections."""
        self.engine.dispose()
