"""One job's engine in its own process: ``python -m workers.runner WORKDIR``.

Reads ``job.json``, walls itself in, only then imports the engine, and reports in JSON lines on stdout.
It knows no database, no broker and no secret, and ends with its supervisor, which does the rest.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from service import faults
from workers import sandbox
from workers.space import NO_SPACE, STORAGE_FULL, is_full

_PROGRESS_SECONDS: Final = 0.2
_ABSOLUTE_FOLDER: Final = re.compile(r"(?<![\w.:/])/(?:[^\s/'\"]+/)+")


class Reporter:
    """Speaks to the supervisor; is the observer of the pipeline (see `compression.pipeline.Observer`)."""

    def __init__(self, channel: int, work: Path) -> None:
        self._channel = channel
        self._work = work
        self._last_progress = 0.0

    def stage(self, name: str) -> None:
        self._last_progress = 0.0
        self.send("stage", stage=name)

    def progress(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - self._last_progress >= _PROGRESS_SECONDS:
            self._last_progress = now
            self.send("progress", done=done, total=total)

    def checkpoint(self, name: str, files: Sequence[Path], data: dict[str, Any]) -> None:
        self.send("checkpoint", name=name, files=[self._relative(path) for path in files], data=data)

    def log(self, message: str) -> None:
        self.send("log", message=without_paths(message)[:4000])

    def metric(self, name: str, value: float) -> None:
        self.send("metric", name=name, value=value)

    def result(self, artifact: Path, report: Path, report_html: Path, summary: dict[str, Any]) -> None:
        paths = {"artifact": artifact, "report": report, "report_html": report_html}
        self.send("result", summary=summary, **{key: self._relative(path) for key, path in paths.items()})

    def error(self, code: str, message: str) -> None:
        self.send("error", code=code, message=without_paths(message)[:4000])

    def send(self, kind: str, **fields: Any) -> None:
        """Write one line whole: a pipe keeps the order, and nobody else writes to this one."""
        rest = memoryview(json.dumps({"type": kind, **fields}).encode() + b"\n")
        while rest:
            rest = rest[os.write(self._channel, rest) :]

    def _relative(self, path: Path) -> str:
        return (self._work / path).resolve().relative_to(self._work).as_posix()


def without_paths(text: str) -> str:
    """The text with the folders of absolute paths cut off: users see names, not the machine's layout."""
    return _ABSOLUTE_FOLDER.sub("", text)


def main(arguments: Sequence[str]) -> int:
    """Run the job in the folder ``arguments[0]``; 0 when a result, 1 when an error was reported."""
    parent = int(os.environ.pop(sandbox.PARENT_VARIABLE, "0")) or os.getppid()
    sandbox.die_with_parent(parent)
    work = Path(arguments[0]).resolve()
    channel = _take_stdout()
    reporter = Reporter(channel, work)
    job = json.loads((work / "job.json").read_text())
    policy = sandbox.Policy.from_json(job["sandbox"]) if "sandbox" in job else sandbox.Policy(work)
    confinement = sandbox.apply(policy)
    # Entering a user namespace forgets the parent-death signal.
    sandbox.die_with_parent(parent)
    reporter.log(f"sandbox: {confinement.describe()}")
    try:
        _compress(job, work, reporter)
    except BaseException as error:
        traceback.print_exc()
        reporter.error(*describe(error))
        return 1
    return 0


def describe(error: BaseException) -> tuple[str, str]:
    """The stable code and the sentence for the user of whatever ended the engine."""
    code = getattr(error, "code", None)
    if type(error).__module__.startswith("compression") and isinstance(code, str):
        return code, str(getattr(error, "message", error))
    text = str(error)
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return "memory_exceeded", "The job needs more memory than its limit allows."
    if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") and "out of memory" in text.lower():
        return "memory_exceeded", "The job needs more memory than the device has."
    if is_full(error):
        return STORAGE_FULL, NO_SPACE
    return (
        "internal",
        f"The engine failed with {type(error).__name__}; the log of the worker has the details.",
    )


def _take_stdout() -> int:
    """Keep the channel to the supervisor for the reporter; what libraries print goes to stderr."""
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel


def _compress(job: dict[str, Any], work: Path, reporter: Reporter) -> None:
    from compression import pipeline
    from compression.specification import JobSpecification

    request = pipeline.Request(
        specification=JobSpecification.model_validate(job["specification"]),
        model=work / job["model"],
        datasets={name: work / path for name, path in job["datasets"].items()},
        work=work,
        device=job["device"],
        threads=job["threads"],
        cache=work / "cache",
    )
    pipeline.fork_nursery(request)
    outcome = pipeline.run(request, reporter, hook=faults.point)
    reporter.result(outcome.artifact, outcome.report, outcome.report_html, outcome.summary)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
