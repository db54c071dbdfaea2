"""A job held by this process: keeps the lease alive, says what happens, notices when the job is lost."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import structlog

from service import faults
from service.db import Database
from service.errors import DatabaseUnavailable, LeaseLost, StorageFull
from service.jobs.repository import Jobs, NewEvent
from service.jobs.states import State
from service.leases.repository import Lease, Leases, NewArtifact
from service.settings import Settings

_log = structlog.get_logger(__name__)
_Result = TypeVar("_Result")
_FLUSH_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = 0.5
_AWAY: Final = (DatabaseUnavailable, StorageFull)
"""What passes by itself, or when the operator makes room."""
_EVENT_LIMIT: Final = 5000
"""Events a runner can cause in one attempt; what it says beyond is dropped."""


def clock() -> float:
    """Seconds of a clock that also runs while the machine sleeps, because leases do too."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def claim(database: Database, job_id: str, owner: str, settings: Settings) -> HeldLease | None:
    """Take the job, if there is something to do for it and nobody else has it.

    A database that does not answer is asked again, for half the time of a lease: the claim may stand although
    its answer was lost.
    """
    asked_at = clock()
    owner = f"{owner}:{secrets.token_hex(4)}"
    while True:
        try:
            with database.session() as session:
                lease = Leases(session).claim(job_id, owner, settings.lease_seconds)
            return None if lease is None else HeldLease(database, lease, settings, asked_at)
        except DatabaseUnavailable:
            if clock() >= asked_at + settings.lease_seconds / 2:
                raise
            time.sleep(_RETRY_SECONDS)


class HeldLease:
    """A lease and everything that is written under it. For one thread.

    `tick` must be called several times a second. While the database does not answer, it is asked again until
    the lease must have run out by this process's own clock; then, and when a write is fenced off, `LeaseLost`
    is raised: whoever works under the lease must stop at once and publish nothing.
    """

    def __init__(self, database: Database, lease: Lease, settings: Settings, claimed_at: float) -> None:
        self.lease = lease
        self.cancel_requested = False
        self._database = database
        self._seconds = settings.lease_seconds
        self._beat_seconds = settings.heartbeat_seconds
        self._until = claimed_at + self._seconds
        self._beat_at = claimed_at + self._beat_seconds
        self._flush_at = self._look_at = claimed_at
        self._stage: str | None = None
        self._progress: dict[str, Any] | None = None
        self._stage_began = claimed_at
        self._reported = 0
        self._events: list[NewEvent] = []
        self._in_flight: list[NewEvent] = []
        self._last_sequence: int | None = None
        self._noted = 0
        self._checkpoint: Mapping[str, Any] | None = None
        self._changed = False

    def stage(self, name: str) -> None:
        """A stage begins; told to the database at the next tick."""
        self._stage = name
        self._stage_began = clock()
        self._reported = 0
        self._progress = {"stage": name, "done": 0, "total": None, "fraction": None, "eta_seconds": None}
        self.note("stage", {"stage": name})
        self._flush_at = 0.0

    def progress(self, done: int, total: int) -> None:
        """``done`` of ``total`` steps of the stage are behind; an event for each hundredth at most."""
        done = min(done, total)
        spent = clock() - self._stage_began
        eta = round(spent * (total - done) / done, 1) if done else None
        fraction = round(done / total, 4) if total else None
        figures = {"done": done, "total": total, "fraction": fraction, "eta_seconds": eta}
        self._progress = {"stage": self._stage, **figures}
        self._changed = True
        if done == total or (done - self._reported) * 100 >= total:
            self._reported = done
            self.note("progress", self._progress)

    def note(self, kind: str, data: Mapping[str, Any]) -> None:
        """An event for those who watch the job; written with the next batch."""
        if self._noted < _EVENT_LIMIT:
            self._noted += 1
            self._events.append(NewEvent(kind, data))
            self._changed = True

    def checkpoint(self, files: list[dict[str, Any]]) -> None:
        """The files of all finished steps, already in the blob store."""
        self._checkpoint = {"files": files}
        self._changed = True
        self._flush_at = 0.0

    def tick(self) -> None:
        """Do what is due: heartbeat, batch of news, a look for a request to cancel. Raises `LeaseLost`."""
        now = clock()
        if now >= self._beat_at or (self._changed and now >= self._flush_at):
            self._attempt(self._beat)
        elif now >= self._look_at:
            self._attempt(self._look)

    def ask(self, question: Callable[[], _Result]) -> _Result:
        """The answer to a question to the database, asked again while it is away and the lease holds."""
        while True:
            try:
                return question()
            except _AWAY as error:
                self._wait_for_database(error)

    def succeed(self, summary: Mapping[str, Any], artifact: NewArtifact, report: str, html: str) -> None:
        """Publish the artifact and end the job, in one transaction."""

        def write(leases: Leases) -> None:
            leases.succeed(
                self.lease,
                result={"summary": dict(summary)},
                artifact=artifact,
                report_sha256=report,
                report_html_sha256=html,
            )
            faults.point("before_commit")

        self._finish(write)
        faults.point("after_commit")

    def fail(self, code: str, message: str) -> None:
        """End the job as failed."""
        self._finish(lambda leases: leases.fail(self.lease, code, message))

    def cancelled(self) -> None:
        """End the job as cancelled."""
        self._finish(lambda leases: leases.cancelled(self.lease))

    def release(
        self, *, charge: bool = False, delay: float = 0.0, code: str = "", message: str = ""
    ) -> State:
        """Give the job back to be run again, after ``delay`` seconds; ``charge`` counts the attempt."""
        return self._finish(
            lambda leases: leases.release(
                self.lease, charge=charge, delay_seconds=delay, code=code, message=message
            )
        )

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except _AWAY as error:
            if clock() >= self._until:
                raise LeaseLost(f"job {self.lease.job_id}: the database was away for too long") from error
            _log.warning("lease.database_unavailable", job=self.lease.job_id)
            self._beat_at = self._look_at = self._flush_at = clock() + _RETRY_SECONDS

    def _beat(self) -> None:
        asked_at = clock()
        with self._database.session() as session:
            leases = Leases(session)
            beat = leases.heartbeat(self.lease, self._seconds, self._progress, self._stage)
            self._write_news(leases)
        self._written()
        self.cancel_requested = self.cancel_requested or beat.cancel_requested
        self._until = asked_at + self._seconds
        self._beat_at = asked_at + self._beat_seconds
        self._flush_at = asked_at + _FLUSH_SECONDS
        self._look_at = asked_at + _LOOK_SECONDS

    def _look(self) -> None:
        self._look_at = clock() + _LOOK_SECONDS
        with self._database.read() as session:
            job = Jobs(session, self.lease.tenant_id).get(self.lease.job_id)
            if job.epoch != self.lease.epoch or State(job.state) is not State.RUNNING:
                raise LeaseLost(f"job {self.lease.job_id} is no longer held under epoch {self.lease.epoch}")
            if job.cancel_requested_at is not None:
                # The next beat lengthens the lease, which the request has cut short.
                self.cancel_requested = True
                self._beat_at = 0.0

    def _write_news(self, leases: Leases) -> None:
        """Add events and checkpoint to a transaction; events of one whose answer was lost are not doubled."""
        if self._in_flight:
            last = leases.append_events(self.lease, [])
            if self._last_sequence is not None and last >= self._last_sequence + len(self._in_flight):
                self._last_sequence, self._in_flight = last, []
        if self._checkpoint is not None:
            leases.save_checkpoint(self.lease, self._checkpoint)
        self._in_flight += self._events
        self._events = []
        if self._last_sequence is None:
            self._last_sequence = leases.append_events(self.lease, [])
        if self._in_flight:
            leases.append_events(self.lease, self._in_flight)

    def _written(self) -> None:
        assert self._last_sequence is not None
        self._last_sequence += len(self._in_flight)
        self._in_flight = []
        self._checkpoint = None
        self._changed = bool(self._events)

    def _finish(self, write: Callable[[Leases], _Result]) -> _Result:
        while True:
            try:
                with self._database.session() as session:
                    leases = Leases(session)
                    self._write_news(leases)
                    return write(leases)
            except _AWAY as error:
                self._wait_for_database(error)

    def _wait_for_database(self, error: Exception) -> None:
        if clock() >= self._until:
            raise LeaseLost(f"job {self.lease.job_id}: the database was away for too long") from error
        _log.warning("lease.database_unavailable", job=self.lease.job_id)
        time.sleep(_RETRY_SECONDS)
