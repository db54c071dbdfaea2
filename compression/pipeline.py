"""A job from beginning to end: model and specification in, smaller model and report out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compression.specification import JobSpecification

STAGES = ("load", "inspect", "baseline", "calibrate", "prune", "recover", "evaluate", "export", "verify")


@dataclass(frozen=True)
class Request:
    """One job. `specification` is resolved; `model` is a folder; `datasets` maps ids to files; `work` is
    scratch.
    """

    specification: JobSpecification
    model: Path
    datasets: Mapping[str, Path]
    work: Path
    device: str = "cpu"
    threads: int = 1


class Observer(Protocol):
    """Whoever follows a job. `stage` is called once a stage, in the order of STAGES; progress is within
    it.
    """

    def stage(self, name: str) -> None: ...

    def progress(self, done: int, total: int) -> None: ...

    def checkpoint(self, name: str, files: Sequence[Path], data: dict[str, Any]) -> None: ...

    def log(self, message: str) -> None: ...

    def metric(self, name: str, value: float) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a job leaves: the artifact's folder, the report as JSON and HTML, and its main figures."""

    artifact: Path
    report: Path
    report_html: Path
    summary: dict[str, Any]


def run(request: Request, observer: Observer, *, hook: Callable[[str], None] | None = None) -> Outcome:
    """Run a job; a job that was killed goes on from the steps under `work/checkpoints`. Raises
    CompressionError.

    `hook(name)` is called at "mid_load", "mid_block", "before_checkpoint_rename", "after_checkpoint_rename"
    and "mid_export", so that a test can kill the process there.
    """
    raise NotImplementedError
