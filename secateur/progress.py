"""Progress on standard error: bars where a person is watching, one line per step elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from secateur import display
from secateur.types import Job

QUIET_SECONDS = 15.0
"""Without a terminal, at most one line in this time within a step."""


class Steps:
    """Shows one step after another: transfers counted in bytes, and the stages of a job.

    Args: `quiet` shows nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._live = display.notes.is_terminal and not quiet
        self._bars = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            console=display.notes,
            disable=not self._live,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._said = 0.0

    def __enter__(self) -> Steps:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._task is not None:
            self._bars.stop_task(self._task)
        self._bars.stop()

    def transfer(self, name: str) -> Callable[[int, int], None]:
        """Begin a step that is counted in bytes and return what to call with (done, total)."""
        self._begin(name)

        def show(done: int, total: int) -> None:
            self._show(done, total, f"{display.size(done)} of {display.size(total)}")

        return show

    def job(self, job: Job) -> None:
        """Show the job's present stage and how far it is."""
        name = (job.stage or "starting") if job.state == "running" else job.state
        if job.finished:
            return
        if name != self._name:
            self._begin(name)
        progress = job.progress
        if progress.total:
            self._show(progress.done or 0, progress.total, f"{progress.done or 0}/{progress.total}")

    def _begin(self, name: str) -> None:
        self._finish()
        self._name, self._said = name, time.monotonic()
        if self._live:
            self._task = self._bars.add_task(name, total=None, shown="")
        elif not self._quiet:
            display.remark(name)

    def _show(self, done: float, total: float, words: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, total=total, shown=words)
        elif not self._quiet and time.monotonic() - self._said > QUIET_SECONDS:
            self._said = time.monotonic()
            display.remark(f"{self._name}: {words}")

    def _finish(self) -> None:
        if self._task is not None:
            total = self._bars.tasks[self._bars.task_ids.index(self._task)].total or 1
            self._bars.update(self._task, completed=total, total=total)
            self._bars.stop_task(self._task)
        self._task = None
