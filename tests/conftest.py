"""Fixtures that all tests share: the two stacks, databases with the newest schema, blobs, settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from service.blobs import LocalBlobs
from service.db import Database
from service.settings import Settings
from service.tables import DEFAULT_TENANT
from tests.stacks import EmbeddedStack, FullStack, Stack

SHARED = Path(__file__).resolve().parents[2] / "shared"

# What a developer's shell says must not reach the tests: they configure their own services.
for _name in [name for name in os.environ if name.startswith("SECATEUR_") and name != "SECATEUR_FAULT_SEEDS"]:
    del os.environ[_name]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {}
    if not config.getoption("--all"):
        reasons["slow"] = "minutes long; runs with --all"
    if not Path("/dev/nvidiactl").exists():
        reasons["gpu"] = "no CUDA device on this machine"
    if not SHARED.is_dir():
        reasons["shared"] = "the reference data is not beside the repository"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
    items[:] = _spread(items)


def _spread(items: list[pytest.Item]) -> list[pytest.Item]:
    """Those that mostly wait among those that mostly compute: at the end they would leave the cores idle."""
    waiting, others = [], []
    for item in items:
        slow = item.path.parent.name == "faults" and not item.get_closest_marker("skip")
        (waiting if slow else others).append(item)
    every = max(1, len(others) * 3 // 4 // (len(waiting) + 1))
    for number, item in enumerate(waiting):
        others.insert(number * (every + 1), item)
    return others


class Groups(LoadScopeScheduling):
    """Hands single tests to the test processes, those that share something costly together, the most first.

    xdist's own `loadgroup` writes groups into node ids, which pytest 9 computes anew: it groups nothing.
    """

    TOGETHER = (
        "tests/faults/test_kill_points.py",
        "tests/acceptance/",
        "tests/engine/test_pipeline.py::test_a_job_killed_anywhere",
        "tests/engine/test_image_jobs.py",
    )

    def _split_scope(self, nodeid: str) -> str:
        return next((part for part in self.TOGETHER if nodeid.startswith(part)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups:
    return Groups(config, log)


@pytest.fixture(scope="session")
def embedded_stack() -> Iterator[Stack]:
    """SQLite and Valkey on a unix socket."""
    with EmbeddedStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def full_stack() -> Iterator[Stack]:
    """PostgreSQL and Valkey over TCP."""
    with FullStack() as stack:
        yield stack


@pytest.fixture(scope="session", params=["embedded", "full"])
def stack(request: pytest.FixtureRequest) -> Stack:
    """Runs the test on both stacks."""
    found = request.getfixturevalue(f"{request.param}_stack")
    assert isinstance(found, Stack)
    return found


@pytest.fixture
def database_url(stack: Stack) -> Iterator[str]:
    """A fresh database with the newest schema, on both stacks."""
    url = stack.new_database()
    yield url
    stack.drop_database(url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Access to a fresh database with the newest schema, on both stacks."""
    opened = Database(database_url)
    yield opened
    opened.dispose()


@pytest.fixture
def tenant() -> str:
    """The tenant that every database has."""
    return DEFAULT_TENANT


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    """An empty local blob store."""
    return LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def settings(stack: Stack, database_url: str, tmp_path: Path) -> Settings:
    """Settings of a service with a fresh database and blob store, on both stacks."""
    return stack.settings(tmp_path / "home", database_url=database_url, blob_url=stack.new_blobs())
