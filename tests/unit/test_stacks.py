"""The stacks themselves: what they promise to other tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time

import redis
from sqlalchemy import text

from service import schema
from service.db import Database
from tests.stacks import Stack


class TestStack:
    def test_has_the_newest_schema(self, stack: Stack) -> None:
        database = Database(stack.database_url)
        try:
            assert schema.is_current(database)
            assert database.dialect == {"embedded": "sqlite", "full": "postgresql"}[stack.name]
        finally:
            database.dispose()

    def test_new_databases_are_apart(self, stack: Stack, database: Database) -> None:
        with database.session() as session:
            session.execute(text("DELETE FROM tenants"))
        other = Database(stack.new_database())
        try:
            with other.read() as session:
                assert session.scalar(text("SELECT count(*) FROM tenants")) == 1
        finally:
            other.dispose()
            stack.drop_database(str(other.engine.url))

    def test_broker_answers_and_forgets(self, stack: Stack) -> None:
        url = stack.broker_url.replace("redis+socket://", "unix://").partition("?")[0]
        with redis.Redis.from_url(url) as client:
            client.set("a", "1")
            stack.wipe_broker()
            assert client.get("a") is None

    def test_environment_and_settings_agree(self, stack: Stack, tmp_path, monkeypatch) -> None:
        from service.settings import Settings

        for name, value in stack.environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        assert Settings() == stack.settings(tmp_path)


def test_servers_die_with_a_killed_test_process() -> None:
    program = textwrap.dedent("""
        import time
        from tests.stacks import FullStack
        stack = FullStack()
        print(stack.folder, flush=True)
        print(stack._postgres._server.process.pid, stack._valkey._server.process.pid, flush=True)
        time.sleep(60)
    """)
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DATABASE_URL", "REDIS_URL")
    }
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        folder = process.stdout.readline().strip()
        pids = [int(word) for word in process.stdout.readline().split()]
        process.kill()
    assert len(pids) == 2
    end = time.monotonic() + 30
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)
    shutil.rmtree(folder)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
