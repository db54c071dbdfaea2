"""Runs one engine job in a process of its own, which kills itself at a hook point.

FOLDER/job.json names the model, the datasets and the specification.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compression.evaluation import nursery, probe


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
    arguments = [str(folder), str(work), point, str(count)]
    status, _, errors = nursery.nursery(1, probe.child_environment(1)).run(__name__, arguments)
    if status not in (0, -signal.SIGKILL):
        raise AssertionError(errors)
    return status


def main(arguments: Sequence[str]) -> int:
    """Run it: FOLDER WORK POINT COUNT."""
    from compression import pipeline

    folder, work, point, count = Path(arguments[0]), Path(arguments[1]), arguments[2], int(arguments[3])
    seen = 0

    def hook(name: str) -> None:
        nonlocal seen
        seen += name == point
        if name == point and seen == count:
            os.kill(os.getpid(), signal.SIGKILL)

    wanted = request(folder, work)
    pipeline.fork_nursery(wanted)
    pipeline.run(wanted, Recorder(), hook=hook)
    return 0
