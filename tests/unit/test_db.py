"""Transactions, the clock and the guarantees of both databases."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, StatementError

from service import schema
from service.db import Database, microseconds, normalise_url, now
from service.errors import DatabaseUnavailable, StorageFull
from service.tables import File, Job, Tenant
from tests import seeds
from tests.stacks import Stack


def add_tenant(database: Database, name: str) -> None:
    with database.session() as session:
        session.execute(insert(Tenant).values(id=name, name=name, created_at=now()))


def names(database: Database) -> set[str]:
    with database.read() as session:
        return set(session.scalars(select(Tenant.id))) - {"ten_default"}


class TestTransactions:
    def test_are_committed_at_the_end(self, database: Database) -> None:
        add_tenant(database, "a")
        assert names(database) == {"a"}

    def test_are_rolled_back_by_an_error(self, database: Database) -> None:
        with pytest.raises(RuntimeError), database.session() as session:
            session.execute(insert(Tenant).values(id="a", name="a", created_at=1))
            session.flush()
            raise RuntimeError
        assert names(database) == set()

    def test_readers_cannot_write(self, database: Database) -> None:
        with pytest.raises(DBAPIError), database.read() as session:
            session.execute(insert(Tenant).values(id="a", name="a", created_at=1))
        add_tenant(database, "b")
        assert names(database) == {"b"}

    def test_reader_sees_one_state_while_others_write(self, database: Database) -> None:
        with database.read() as session:
            before = set(session.scalars(select(Tenant.id)))
            with ThreadPoolExecutor(1) as pool:
                pool.submit(add_tenant, database, "late").result(10)
            assert set(session.scalars(select(Tenant.id))) == before
        assert names(database) == {"late"}

    def test_foreign_keys_hold(self, database: Database) -> None:
        with pytest.raises(IntegrityError), database.session() as session:
            session.execute(
                insert(File).values(owner_id="o", path="p", tenant_id="nobody", sha256="0", bytes=1)
            )

    def test_checks_hold(self, database: Database) -> None:
        job = seeds.make_job(database, seeds.make_model(database))
        with pytest.raises(IntegrityError), database.session() as session:
            session.execute(update(Job).where(Job.id == job).values(state="lost"))

    def test_not_a_number_is_no_json(self, database: Database) -> None:
        job = seeds.make_job(database, seeds.make_model(database))
        with pytest.raises((StatementError, ValueError)), database.session() as session:
            session.execute(update(Job).where(Job.id == job).values(result={"loss": float("nan")}))

    def test_many_threads_lose_no_update(self, database: Database) -> None:
        def add() -> None:
            for _ in range(10):
                with database.session() as session:
                    found = session.execute(select(Tenant).with_for_update()).scalar_one()
                    session.execute(update(Tenant).values(created_at=found.created_at + 1))

        with database.session() as session:
            session.execute(update(Tenant).values(created_at=0))
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(add) for _ in range(8)]:
                done.result()
        with database.read() as session:
            assert session.scalars(select(Tenant.created_at)).one() == 80

    def test_mistakes_are_not_called_outages(self, database: Database) -> None:
        with pytest.raises(DBAPIError), database.read() as session:
            session.execute(text("SELECT * FROM no_such_table"))


class TestClock:
    def test_is_the_time(self, database: Database) -> None:
        before = time.time_ns() // 1000 - 2000
        with database.read() as session:
            found = session.scalars(select(now())).one()
        assert before <= found <= time.time_ns() // 1000 + 2000

    def test_moves_within_a_transaction(self, database: Database) -> None:
        with database.session() as session:
            first = session.scalars(select(now())).one()
            time.sleep(0.02)
            assert session.scalars(select(now())).one() >= first + 15_000

    def test_microseconds(self) -> None:
        assert microseconds(1.5) == 1_500_000


class TestUrls:
    @pytest.mark.parametrize(
        ("given", "driver"),
        [
            ("postgres://u:p@h/d", "postgresql+psycopg"),
            ("postgresql://u:p@h/d", "postgresql+psycopg"),
            ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg"),
            ("sqlite:////tmp/a.db", "sqlite+pysqlite"),
        ],
    )
    def test_driver(self, given: str, driver: str) -> None:
        assert normalise_url(given).drivername == driver

    def test_ping_of_a_database_that_is_not_there(self) -> None:
        database = Database("postgresql://nobody@127.0.0.1:1/nothing")
        try:
            with pytest.raises(DatabaseUnavailable):
                database.ping()
        finally:
            database.dispose()


class TestPostgreSQL:
    def test_isolation_and_recovery_from_cut_connections(self, full_stack: Stack) -> None:
        url = full_stack.new_database()
        database = Database(url)
        try:
            with database.session() as session:
                assert session.scalar(text("SHOW transaction_isolation")) == "read committed"
                session.execute(text("SET application_name = 'victim'"))
            with pytest.raises(DatabaseUnavailable), database.session() as session:
                pid = session.scalar(text("SELECT pg_backend_pid()"))
                other = Database(full_stack.database_url)
                with other.session() as killer:
                    killer.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
                other.dispose()
                time.sleep(0.1)
                session.execute(text("SELECT 1"))
            database.ping()
        finally:
            database.dispose()
            full_stack.drop_database(url)

    def test_deadlock_is_unavailable_and_nothing_is_written(self, full_stack: Stack) -> None:
        url = full_stack.new_database()
        database = Database(url)
        for name in "ab":
            add_tenant(database, name)
        barrier = threading.Barrier(2)

        def swap(first: str, second: str) -> bool:
            try:
                with database.session() as session:
                    session.execute(update(Tenant).where(Tenant.id == first).values(name="x"))
                    barrier.wait()
                    session.execute(update(Tenant).where(Tenant.id == second).values(name="x"))
            except DatabaseUnavailable:
                return False
            return True

        try:
            with ThreadPoolExecutor(2) as pool:
                futures = [pool.submit(swap, *pair) for pair in (("a", "b"), ("b", "a"))]
                assert sorted(future.result() for future in futures) == [False, True]
        finally:
            database.dispose()
            full_stack.drop_database(url)


class TestSQLite:
    def test_pragmas(self, embedded_stack: Stack) -> None:
        database = Database(embedded_stack.database_url)
        try:
            with database.session() as session:
                found = {
                    name: session.scalar(text(f"PRAGMA {name}"))
                    for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
                }
        finally:
            database.dispose()
        assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}

    def test_writer_waits_for_another_process(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        schema.upgrade(f"sqlite:///{path}")
        program = (
            "import sqlite3, sys, time\n"
            f"c = sqlite3.connect({str(path)!r}, isolation_level=None)\n"
            "c.execute('BEGIN IMMEDIATE')\n"
            "print('locked', flush=True); time.sleep(1.5); c.execute('COMMIT')\n"
        )
        database = Database(f"sqlite:///{path}")
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            start = time.monotonic()
            add_tenant(database, "a")
            assert time.monotonic() - start > 0.5
        database.dispose()

    def test_locked_for_too_long(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.db"
        schema.upgrade(f"sqlite:///{path}")
        monkeypatch.setattr("service.db.BUSY_TIMEOUT_MS", 100)
        database = Database(f"sqlite:///{path}")
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(DatabaseUnavailable):
                add_tenant(database, "a")
            assert names(database) == set()
        finally:
            holder.close()
            database.dispose()

    def test_full_disk(self, tmp_path: Path) -> None:
        path = tmp_path / "a.db"
        schema.upgrade(f"sqlite:///{path}")
        database = Database(f"sqlite:///{path}")
        try:
            with pytest.raises(StorageFull), database.session() as session:
                pages = session.scalar(text("PRAGMA page_count"))
                session.execute(text(f"PRAGMA max_page_count = {pages}"))
                session.execute(insert(Tenant).values(id="a", name="x" * 100_000, created_at=1))
            assert names(database) == set()
        finally:
            database.dispose()

    def test_commit_survives_a_killed_process(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path / 'a.db'}"
        schema.upgrade(url)
        program = (
            "import os, signal\n"
            "from service.db import Database\n"
            "from tests.unit.test_db import add_tenant\n"
            f"database = Database({url!r})\n"
            "add_tenant(database, 'kept')\n"
            "with database.session() as session:\n"
            "    session.connection().exec_driver_sql(\"INSERT INTO tenants VALUES ('lost', 'lost', 1)\")\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        subprocess.run([sys.executable, "-c", program], check=False)
        database = Database(url)
        try:
            assert names(database) == {"kept"}
        finally:
            database.dispose()
