"""The database goes away for a while."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.faults.harness import PATIENCE, Site, open_site, until
from tests.stacks import Stack

# The lease of the other fault tests can run out on a busy machine without any fault.
PATIENT = {"SECATEUR_LEASE_SECONDS": "20"}

pytestmark = pytest.mark.timeout(900)


def test_cut_connections_to_postgresql_do_not_harm_a_job(full_stack: Stack, tmp_path: Path) -> None:
    with open_site(full_stack, tmp_path) as site:
        site.worker(environment=PATIENT).wait_ready()
        job = site.submit()
        url = make_url(site.database_url)
        plain = url.set(drivername="postgresql", database="postgres").render_as_string(hide_password=False)
        with psycopg.connect(plain, autocommit=True) as connection:
            until(lambda: site.job(job).state == "running", PATIENCE, lambda: site.account(job))
            while site.job(job).state == "running":
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = %s AND application_name = '' AND pid <> pg_backend_pid()",
                    [url.database],
                )
                time.sleep(0.7)
        assert site.check_succeeded(job).attempt == 1


def test_a_locked_sqlite_is_waited_for(embedded_site: Site) -> None:
    embedded_site.worker(environment=PATIENT).wait_ready()
    job = embedded_site.submit()
    path = make_url(embedded_site.database_url).database
    assert path is not None
    until(lambda: embedded_site.job(job).state == "running", PATIENCE, lambda: embedded_site.account(job))
    release = threading.Event()
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN IMMEDIATE")
    threading.Timer(2.0, release.set).start()
    release.wait()
    connection.execute("ROLLBACK")
    connection.close()
    assert embedded_site.check_succeeded(job).attempt == 1
