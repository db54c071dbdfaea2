"""Sites to break."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import Site, open_site
from tests.stacks import Stack


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Normally every point is killed at on one stack, in turns; `--all` and more seeds take both."""
    if int(os.environ.get("SECATEUR_FAULT_SEEDS", "1")) > 1:
        return
    seen: dict[str, int] = {}
    for item in items:
        if item.path.name == "test_kill_points.py" and hasattr(item, "callspec"):
            stack = item.callspec.params["stack"]
            number = seen[stack] = seen.get(stack, -1) + 1
            if number % 2 == (stack == "full"):
                item.add_marker(pytest.mark.slow)


@pytest.fixture
def both_sites(stack: Stack, tmp_path: Path) -> Iterator[Site]:
    """A fresh database and blob store on both stacks; workers are started by the test."""
    with open_site(stack, tmp_path) as opened:
        yield opened


@pytest.fixture(params=["embedded", pytest.param("full", marks=pytest.mark.slow)])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """The same, where the stack hardly matters: the full one with `--all` only."""
    with open_site(request.getfixturevalue(f"{request.param}_stack"), tmp_path) as opened:
        yield opened


@pytest.fixture(params=[pytest.param("embedded", marks=pytest.mark.slow), "full"])
def full_site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    """The same, the other way round."""
    with open_site(request.getfixturevalue(f"{request.param}_stack"), tmp_path) as opened:
        yield opened


@pytest.fixture
def embedded_site(embedded_stack: Stack, tmp_path: Path) -> Iterator[Site]:
    """The same on SQLite and a unix socket only, for what does not depend on the stack."""
    with open_site(embedded_stack, tmp_path) as opened:
        yield opened
