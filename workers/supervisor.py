"""One job from claim to end, seen from the process that holds its lease.

The supervisor never touches a weight. It fills the work folder, lets a runner work in it, keeps the lease
alive, passes on what the runner says, enforces limits, and publishes what came out. Whatever happens: when
`Supervisor.run` returns, the runner is gone, the folder deleted, and the job ended, given back, or lost.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from service import faults
from service.blobs import BlobStore
from service.db import Database
from service.errors import LeaseLost, NotFound
from service.leases.repository import NewArtifact
from service.settings import Settings
from workers.lease import HeldLease, clock
from workers.messages import (
    CheckpointSaved,
    Failed,
    Finished,
    Logged,
    Measured,
    Message,
    Progressed,
    StageBegun,
)
from workers.process import RunnerProcess
from workers.publication import Publication, publish
from workers.space import NO_SPACE, STORAGE_FULL, is_full
from workers.staging import Staging, StagingInvalid, find_inputs
from workers.timings import keep_times, new_times

_log = structlog.get_logger(__name__)
_Result = TypeVar("_Result")
_TICK_SECONDS: Final = 0.1
_MEMORY_LOOK_SECONDS: Final = 0.5
_CANCEL_GRACE: Final = 5.0
_DRAIN_GRACE: Final = 1.0
_LONGEST_DELAY: Final = 30.0
_LONGEST_WAIT_FOR_SPACE: Final = 300.0


@dataclass(frozen=True)
class Placement:
    """Where a runner computes: ``device`` is "cpu" or "cuda"; ``environment`` narrows the devices it sees."""

    device: str = "cpu"
    threads: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)


class JobFailed(Exception):
    """The job cannot succeed, now or later; ``message`` is for its user."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message


class RunnerCrashed(JobFailed):
    """The runner ended without a word; another attempt may fare better."""


class CancelRequested(Exception):
    """The user wants the job to stop."""


class Draining(Exception):
    """The worker is being stopped."""


class Supervisor:
    """Carries out one held job."""

    def __init__(
        self,
        held: HeldLease,
        database: Database,
        blobs: BlobStore,
        settings: Settings,
        placement: Placement,
        draining: Callable[[], bool],
    ) -> None:
        self._held = held
        self._database = database
        self._placement = placement
        self._draining = draining
        self._limits = held.lease.specification["limits"]
        self._staging = Staging(settings, held.lease, blobs)
        self._background = ThreadPoolExecutor(1, thread_name_prefix="staging")
        self._checkpoints: list[Future[list[dict[str, Any]]]] = []
        self._finished: Finished | None = None
        self._failed: Failed | None = None

    def run(self) -> str:
        """Carry the job out; says how it ended, for the log."""
        held = self._held
        try:
            return self._carry_out()
        except CancelRequested:
            return self._last_word(held.cancelled, "cancelled")
        except Draining:
            return self._last_word(held.release, "released")
        except RunnerCrashed as crash:
            return self._last_word(partial(self._again, crash.code, crash.message), f"crashed: {crash.code}")
        except JobFailed as failure:
            return self._last_word(
                partial(held.fail, failure.code, failure.message), f"failed: {failure.code}"
            )
        except LeaseLost:
            return "lost"
        except Exception as error:
            if is_full(error):
                return self._last_word(
                    partial(self._again, STORAGE_FULL, NO_SPACE), f"crashed: {STORAGE_FULL}"
                )
            _log.exception("supervisor.failed", job=held.lease.job_id)
            message = "the worker met an error of its own; its log has the details"
            return self._last_word(partial(self._again, "internal", message), "released after an error")
        finally:
            self._staging.abandoned.set()
            self._background.shutdown(wait=True, cancel_futures=True)
            self._staging.remove()

    def _last_word(self, write: Callable[[], object], ending: str) -> str:
        try:
            write()
        except LeaseLost:
            return "lost"
        return ending

    def _again(self, code: str, message: str) -> None:
        attempt = self._held.lease.attempt
        delay = min(0.5 * 2**attempt, _LONGEST_DELAY)
        if code == STORAGE_FULL:
            # Somebody has to make room: jobs that wait for it must not use up their attempts meanwhile.
            delay = min(2.0 * 4**attempt, _LONGEST_WAIT_FOR_SPACE)
        self._held.release(charge=True, delay=delay, code=code, message=message)

    def _carry_out(self) -> str:
        self._staging.own()
        self._prepare()
        self._compress()
        published = self._meanwhile(self._background.submit(self._publish))
        artifact = NewArtifact(format=published.format, manifest=published.manifest, files=published.files)
        self._held.succeed(published.summary, artifact, published.report, published.report_html)
        return "succeeded"

    def _prepare(self) -> None:
        try:
            inputs = self._held.ask(lambda: find_inputs(self._database, self._held.lease))
        except NotFound as error:
            raise JobFailed("input_missing", f"An input of the job is gone: {error}.") from error
        place = self._placement
        self._meanwhile(self._background.submit(self._staging.prepare, inputs, place.device, place.threads))

    def _publish(self) -> Publication:
        assert self._finished is not None
        faults.point("before_publish")
        try:
            published = publish(self._staging, self._finished, self._held.lease.specification)
        except (StagingInvalid, FileNotFoundError) as error:
            _log.warning("publication.invalid", job=self._held.lease.job_id, error=str(error))
            raise JobFailed("internal", "The engine left an artifact that cannot be published.") from error
        with suppress(OSError):
            self._staging.measurements.take_back(self._staging.path)
        return published

    def _compress(self) -> None:
        """Let a runner work until it ends; raises unless it has reported a result."""
        place = self._placement
        runner = RunnerProcess(self._staging.path, place.threads, place.environment)
        grace = _CANCEL_GRACE
        try:
            self._staging.own(runner.pid)
            faults.point("after_spawn")
            self._listen(runner)
        except Draining:
            grace = _DRAIN_GRACE
            raise
        except LeaseLost:
            grace = 0.0
            raise
        finally:
            runner.stop(grace, self._keep_lease)
        self._keep_times()
        self._judge(runner)

    def _keep_times(self) -> None:
        """Times of layers hold for plans and later jobs, also where the job itself fails."""
        tables = new_times(self._staging.lent_times, self._staging.path)
        if tables:
            self._held.ask(lambda: keep_times(self._database, self._held.lease.tenant_id, tables))

    def _listen(self, runner: RunnerProcess) -> None:
        started_at = clock()
        look_at = started_at
        while not runner.ended:
            message = runner.next_message(_TICK_SECONDS)
            if message is not None:
                self._take(message)
            self._record_checkpoints()
            self._tick()
            now = clock()
            if now - started_at > self._limits["seconds"]:
                seconds = self._limits["seconds"]
                raise JobFailed("time_exceeded", f"The job took longer than its limit of {seconds} seconds.")
            if now >= look_at:
                look_at = now + _MEMORY_LOOK_SECONDS
                self._check_memory(runner)

    def _check_memory(self, runner: RunnerProcess) -> None:
        limit = self._limits.get("memory_bytes")
        if limit is None:
            return
        used = runner.resident_bytes()
        if used > limit:
            raise JobFailed("memory_exceeded", f"The job used {used} bytes of memory; its limit is {limit}.")

    def _take(self, message: Message) -> None:
        held = self._held
        match message:
            case StageBegun(stage=name):
                held.stage(name)
            case Progressed(done=done, total=total):
                held.progress(done, total)
            case Logged(message=text):
                held.note("log", {"message": text})
            case Measured(name=name, value=value):
                held.note("metric", {"name": name, "value": value})
            case CheckpointSaved(files=files):
                self._checkpoints.append(self._background.submit(self._staging.keep_checkpoint, files))
            case Finished():
                self._finished = message
            case Failed():
                self._failed = message

    def _record_checkpoints(self) -> None:
        """Note the checkpoints that have reached the blob store meanwhile."""
        while self._checkpoints and self._checkpoints[0].done():
            try:
                self._held.checkpoint(self._checkpoints.pop(0).result())
            except Exception as error:
                # Without it the job only has to do more again, should it be interrupted.
                _log.warning("checkpoint.not_kept", job=self._held.lease.job_id, error=str(error))

    def _judge(self, runner: RunnerProcess) -> None:
        status = runner.exit_status or 0
        if self._failed is not None:
            _log.info(
                "runner.failed", job=self._held.lease.job_id, code=self._failed.code, stderr=runner.tail
            )
            kind = RunnerCrashed if self._failed.code == STORAGE_FULL else JobFailed
            raise kind(self._failed.code, self._failed.message)
        if status == 0 and self._finished is not None:
            return
        _log.warning("runner.crashed", job=self._held.lease.job_id, status=status, stderr=runner.tail)
        raise RunnerCrashed("crashed", _crash(status))

    def _tick(self) -> None:
        self._held.tick()
        if self._held.cancel_requested:
            raise CancelRequested
        if self._draining():
            raise Draining

    def _keep_lease(self) -> None:
        """Nobody shall take the job over while its runner is still being ended."""
        with suppress(LeaseLost):
            self._held.tick()

    def _meanwhile(self, future: Future[_Result]) -> _Result:
        """The result of background work, with the lease kept alive while it is under way."""
        while not wait([future], timeout=_TICK_SECONDS).done:
            self._tick()
        return future.result()


def _crash(status: int) -> str:
    if status >= 0:
        return f"The engine's process ended with status {status} without a result."
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    hint = "; the machine may have run out of memory" if -status == signal.SIGKILL else ""
    return f"The engine's process was ended by {name}{hint}."
