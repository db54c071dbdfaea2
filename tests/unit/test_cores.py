"""Cores that a runner's threads are counted from."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.cores import available_cores


@pytest.mark.parametrize(("text", "most"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", 10**6)])
def test_a_quota_of_version_two_bounds_the_cores(tmp_path: Path, text: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert 1 <= available_cores(tmp_path) <= most


def test_a_quota_of_version_one_bounds_the_cores(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == 1


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    import os

    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))
