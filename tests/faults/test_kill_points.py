"""The worker's whole process group is killed (-9) at each of the twelve named points.

Whatever the moment: the job ends once, as succeeded, with the artifact that an undisturbed run makes, byte
for byte; its history has no gap and no double; no process and no work folder is left.

Normally one seed, the points in turns on the two stacks; ``--all`` takes every point on both, and
``SECATEUR_FAULT_SEEDS=3`` runs all 72 cases and writes the table of them.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.faults import POINTS
from tests.faults.harness import PATIENCE, Site, Worker, open_site, until
from tests.stacks import Stack

SEEDS = int(os.environ.get("SECATEUR_FAULT_SEEDS", "1"))
AT_ONCE = 3
TABLE = Path(__file__).parents[1] / "bench" / "results" / "faults.md"
RESCUER = 15


@dataclass(frozen=True)
class Case:
    """Kill at the `hit`-th passing of `point`, counted from the start or from the passing of `armed_by`."""

    point: str
    seed: int

    @property
    def fault(self) -> str:
        return f"{self.point}:kill:{self.hit}"

    @property
    def hit(self) -> int:
        # A new seed dies at another block, checkpoint or file.
        repeated = (
            "mid_block",
            "before_checkpoint_rename",
            "after_checkpoint_rename",
            "after_fsync",
            "after_rename",
        )
        times = 2 if self.point == "mid_block" else 3
        return 1 + self.seed % times if self.point in repeated else 1

    @property
    def armed_by(self) -> str:
        return "before_publish" if self.point in ("after_fsync", "after_rename") and self.seed < 2 else ""


@dataclass(frozen=True)
class Result:
    """What a case did, for the table."""

    case: Case
    stack: str
    attempts: int
    seconds: float


class Matrix:
    """All cases of one stack, some at a time; one healthy worker takes over what the killed ones leave."""

    def __init__(self, stack: Stack, folder: Path, cases: Collection[Case]) -> None:
        self._stack = stack
        self._folder = folder
        self._lock = threading.Lock()
        self._opened = open_site(stack, folder / "site")
        self._site = self._opened.__enter__()
        self._site.worker(RESCUER, concurrency=2).wait_ready()
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._expected = {
            seed: self._pool.submit(self._undisturbed, seed) for seed in {case.seed for case in cases}
        }
        self._futures = {case: self._pool.submit(self._run, case) for case in cases}

    def result(self, case: Case) -> Result:
        return self._futures[case].result()

    def finished(self) -> list[Result]:
        done = [future for future in self._futures.values() if future.done() and not future.exception()]
        return [future.result() for future in done]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        failed = [future for future in self._futures.values() if future.cancelled() or future.exception()]
        try:
            if not failed:
                self._site.check_clean()
        finally:
            self._opened.__exit__(None, None, None)

    def _undisturbed(self, seed: int) -> Mapping[str, str]:
        job = self._site.submit(RESCUER, seed=seed)
        self._site.check_succeeded(job)
        return self._site.artifact(job)

    def _run(self, case: Case) -> Result:
        began = time.monotonic()
        if case.point == "before_ring":
            attempts = self._sweeper_killed(case)
        else:
            worker = self._worker(self._site, case)
            job = self._site.submit(1 + CASES.index(case) % (RESCUER - 1), seed=case.seed)
            attempts = self._outcome(self._site, worker, job, case)
        return Result(case, self._stack.name, attempts, time.monotonic() - began)

    def _sweeper_killed(self, case: Case) -> int:
        """Here the worker dies while it rings for a forgotten job: nobody else may find the job before."""
        folder = self._folder / f"{case.point}-{case.seed}"
        with open_site(self._stack, folder) as site:
            job = site.submit(None, seed=case.seed)
            worker = self._worker(site, case, site.broker(0))
            until(lambda: worker.fired, PATIENCE, worker.tail)
            site.worker(0).wait_ready()
            return self._outcome(site, worker, job, case, same_inputs=False)

    def _worker(self, site: Site, case: Case, broker: str | None = None) -> Worker:
        number = 1 + CASES.index(case) % (RESCUER - 1)
        with self._lock:
            # Where one healthy worker sweeps for all, the doomed ones keep to their own bells.
            alone = (
                {} if broker else {"SECATEUR_SWEEP_SECONDS": "3600", "SECATEUR_RING_AFTER_SECONDS": "3600"}
            )
            worker = site.worker(
                number, fault=case.fault, armed_by=case.armed_by, broker=broker, environment=alone
            )
        return worker if broker else worker.wait_ready()

    def _outcome(self, site: Site, worker: Worker, job: str, case: Case, *, same_inputs: bool = True) -> int:
        until(lambda: worker.fired, PATIENCE, lambda: f"never at {case.point}\n{site.account(job)}")
        assert worker.process.wait(10) == -9
        expected = self._expected[case.seed].result()
        done = site.check_succeeded(job, expected if same_inputs else None)
        if not same_inputs:
            assert _weights(site.artifact(job)) == _weights(expected)
        # Seldom the doomed worker finds another case's job by sweeping, and dies with that one instead.
        assert 1 <= done.attempt <= 3, site.account(job)
        return done.attempt


def _weights(files: Mapping[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in files.items() if path.endswith(".safetensors")}


CASES = tuple(Case(point, seed) for seed in range(SEEDS) for point in POINTS)


@pytest.fixture(scope="module")
def matrix(
    request: pytest.FixtureRequest, stack: Stack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Matrix]:
    chosen = [
        item.callspec.params
        for item in request.session.items
        if hasattr(item, "callspec") and not item.get_closest_marker("skip")
    ]
    cases = {
        params["case"]: None
        for params in chosen
        if isinstance(params.get("case"), Case) and params.get("stack") == stack.name
    }
    opened = Matrix(stack, tmp_path_factory.mktemp(f"kill-{stack.name}"), cases)
    yield opened
    if SEEDS > 1:
        _write_table(stack, opened.finished())
    opened.close()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.point}-{case.seed}")
def test_a_killed_worker_loses_and_doubles_nothing(matrix: Matrix, case: Case) -> None:
    assert matrix.result(case).attempts <= 3


def _write_table(stack: Stack, results: list[Result]) -> None:
    """Keep the measured table; each stack has its own part of the data beside it."""
    data = TABLE.with_suffix(".json")
    known = json.loads(data.read_text()) if data.exists() else {}
    rows = {(row[0], row[1]): row for row in known.get(stack.name, [])}
    for result in results:
        case = result.case
        rows[case.point, case.seed] = [case.point, case.seed, result.attempts, round(result.seconds, 1)]
    known[stack.name] = [rows[key] for key in sorted(rows)]
    data.write_text(json.dumps(known, indent=1) + "\n")
    cases = sum(len(rows) for rows in known.values())
    lines = [
        "# Workers killed (-9) at twelve named points",
        "",
        f"{cases} cases; each: job ended once as succeeded, history sound, artifact identical",
        f"to the undisturbed run (sha256 of every file), nothing left behind. {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}. `attempts` includes the killed one.",
        "",
        "| point | stack | seeds | attempts | seconds (slowest) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for point in POINTS:
        for name, rows in sorted(known.items()):
            mine = [row for row in rows if row[0] == point]
            attempts = ", ".join(str(row[2]) for row in mine)
            slowest = max((row[3] for row in mine), default=0.0)
            lines.append(f"| {point} | {name} | {len(mine)} | {attempts} | {slowest} |")
    TABLE.write_text("\n".join(lines) + "\n")
