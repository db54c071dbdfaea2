"""Runs one engine job in a process of its own, killing itself at a hook point if it is told to.

`python -m tests.engine.jobs FOLDER [POINT:COUNT]`: FOLDER/job.json names the model, the datasets and the
specification.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Recorder:
    """An observer that notes everything."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.steps: list[str] = []
        self.messages: list[str] = []
        self.metrics: dict[str, float] = {}

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def progress(self, done: int, total: int) -> None:
        assert 0 <= done <= total

    def checkpoint(self, name: str, files: Any, data: dict[str, Any]) -> None:
        self.steps.append(name)

    def log(self, message: str) -> None:
        self.messages.append(message)

    def metric(self, name: str, value: float) -> None:
        self.metrics[name] = value


def request(folder: Path, work: Path) -> Any:
    """The request that FOLDER/job.json describes, resolved."""
    from compression.pipeline import Request
    from compression.standalone import resolve_alone

    job = json.loads((folder / "job.json").read_text())
    datasets = {name: folder / path for name, path in job["datasets"].items()}
    model = folder / job["model"]
    return Request(resolve_alone(job["specification"], model, datasets), model, datasets, work)


def write_job(folder: Path, model: str, datasets: Mapping[str, str], specification: dict[str, Any]) -> None:
    """Describe a job; a model and datasets are paths within the folder."""
    specification = {"model": "mdl_test", **specification}
    job = {"model": model, "datasets": dict(datasets), "specification": specification}
    (folder / "job.json").write_text(json.dumps(job))


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file under a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run_and_kill(folder: Path, work: Path, point: str, count: int) -> int:
    """Run the job in another process that kills itself at the `count`-th time of `point`; its exit status."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.engine.jobs", str(folder), str(work), point, str(count)]
    root = Path(__file__).resolve().parents[2]
    finished = subprocess.run(command, env=environment, cwd=root, capture_output=True, check=False)
    if finished.returncode not in (0, -signal.SIGKILL):
        raise AssertionError(finished.stderr.decode())
    return finished.returncode


def main() -> None:
    """The command."""
    from compression import pipeline

    folder, work, point, count = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    seen = 0

    def hook(name: str) -> None:
        nonlocal seen
        seen += name == point
        if name == point and seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

    pipeline.run(request(folder, work), Recorder(), hook=hook)


if __name__ == "__main__":
    main()
