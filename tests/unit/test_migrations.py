"""Migrations on both databases: up, down, drift, concurrency, data kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from service import schema
from service.db import Database
from service.tables import Base
from tests import seeds
from tests.stacks import Stack


@pytest.fixture
def empty_url(stack: Stack) -> Iterator[str]:
    url = stack.new_database(migrated=False)
    yield url
    stack.drop_database(url)


def tables(url: str) -> set[str]:
    database = Database(url)
    try:
        with database.read() as session:
            return set(inspect(session.connection()).get_table_names())
    finally:
        database.dispose()


def revisions() -> list[str]:
    scripts = ScriptDirectory.from_config(schema.alembic_config())
    return [script.revision for script in reversed(list(scripts.walk_revisions()))]


class TestUpgrade:
    def test_from_nothing_to_the_newest(self, empty_url: str) -> None:
        schema.upgrade(empty_url)
        assert tables(empty_url) == set(Base.metadata.tables) | {"alembic_version"}

    def test_again_changes_nothing(self, empty_url: str) -> None:
        schema.upgrade(empty_url)
        schema.upgrade(empty_url)
        database = Database(empty_url)
        try:
            assert schema.is_current(database)
            with database.read() as session:
                assert session.scalar(text("SELECT count(*) FROM tenants")) == 1
        finally:
            database.dispose()

    def test_every_revision_up_and_down(self, empty_url: str) -> None:
        for revision in revisions():
            schema.upgrade(empty_url, revision)
        for revision in ["base", *revisions()[:-1]][::-1]:
            schema.downgrade(empty_url, revision)
        assert tables(empty_url) == {"alembic_version"}
        schema.upgrade(empty_url)

    def test_at_the_same_time_from_several_threads(self, empty_url: str) -> None:
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(schema.upgrade, empty_url) for _ in range(4)]:
                done.result()
        assert tables(empty_url) > {"jobs", "alembic_version"}

    def test_at_the_same_time_from_several_processes(self, empty_url: str) -> None:
        program = (
            "import sys\n"
            "from service import schema\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            f"schema.upgrade({empty_url!r})\n"
        )
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            process.communicate(timeout=60)
        assert [process.returncode for process in processes] == [0, 0, 0]

    def test_failed_one_leaves_nothing(self, empty_url: str) -> None:
        database = Database(empty_url)
        try:
            with database.session() as session:
                session.execute(text("CREATE TABLE artifacts (id INTEGER)"))
        finally:
            database.dispose()
        with pytest.raises(Exception, match="already exists"):
            schema.upgrade(empty_url)
        assert tables(empty_url) == {"artifacts"}


class TestState:
    def test_empty_database_is_not_current(self, empty_url: str) -> None:
        database = Database(empty_url)
        try:
            assert schema.current(database) is None
            assert not schema.is_current(database)
        finally:
            database.dispose()

    def test_migrated_database_is_current(self, database: Database) -> None:
        assert schema.current(database) == schema.head() == revisions()[-1]

    def test_one_line_of_revisions(self) -> None:
        assert len(ScriptDirectory.from_config(schema.alembic_config()).get_heads()) == 1


class TestDrift:
    def test_tables_are_what_the_migrations_make(self, database: Database) -> None:
        options = {"compare_type": True, "compare_server_default": True}
        with database.read() as session:
            context = MigrationContext.configure(session.connection(), opts=options)
            assert compare_metadata(context, Base.metadata) == []

    def test_checks_are_what_the_migrations_make(self, database: Database) -> None:
        with database.read() as session:
            inspector = inspect(session.connection())
            for table in Base.metadata.sorted_tables:
                found = {check["name"] for check in inspector.get_check_constraints(table.name)}
                assert found == {
                    check.name for check in table.constraints if type(check).__name__ == "CheckConstraint"
                }, table.name

    def test_data_survives_enforced_keys(self, database: Database, database_url: str) -> None:
        job = seeds.make_job(database, seeds.make_model(database))
        database.dispose()
        schema.upgrade(database_url)
        assert seeds.job_row(database, job).state == "queued"


def test_works_from_any_folder(tmp_path: Path) -> None:
    program = f"from service import schema; schema.upgrade('sqlite:///{tmp_path}/a.db'); print(schema.head())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == schema.head(), done.stderr
