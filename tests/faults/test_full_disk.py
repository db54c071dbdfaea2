"""The disk of a whole service fills up: it refuses by name, loses nothing, goes on with room."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MOUNT = 'mount -t tmpfs -o size=48m none "$1" && shift && exec "$@"'


def inside(home: Path, *command: str) -> list[str]:
    """The command in a mount namespace of its own, where `home` is a small file system."""
    return ["unshare", "--mount", "--map-root-user", "sh", "-c", MOUNT, "sh", str(home), *command]


@pytest.fixture
def place() -> Iterator[Path]:
    # Not below pytest's folders: the path of a unix socket is short.
    base = Path(tempfile.mkdtemp(prefix="sec-"))
    (base / "home").mkdir()
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.mark.timeout(600)
def test_a_full_disk_refuses_by_name_and_loses_nothing(place: Path) -> None:
    home = place / "home"
    if shutil.which("unshare") is None or subprocess.run(inside(home, "true"), check=False).returncode:
        pytest.skip("this machine lets nobody mount a small file system")
    command = [sys.executable, "-m", "tests.faults.full_disk", str(home), str(place)]
    done = subprocess.run(inside(home, *command), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(done.stdout)
    log = seen.pop("log")
    assert seen.pop("full") in ("queued", "running"), log
    assert seen == {
        "before": "succeeded",
        "upload": "storage_full",
        "read": "done",
        "job": "succeeded",
        "after": "succeeded",
        "uploaded": "done",
        "status": 0,
        "database": "ok",
        "work": [],
    }, log
    assert "Traceback (most recent call last):\n" not in log
