"""SQL of the lease protocol: how workers take, keep and finish jobs, and are fenced off (system scope).

A lease is a job's id and epoch. A worker's write names both, and hits a row only as long as the job runs
under that epoch. When it hits none, somebody else has the job or it has ended: `LeaseLost` is raised, and
the worker must stop its runner and delete what it staged. All times are by the clock of the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session

from service import ids
from service.db import microseconds, now
from service.errors import LeaseLost
from service.files.repository import FileEntry, Files
from service.jobs.repository import CANCEL_GRACE_SECONDS, Ledger, NewEvent, insert_events
from service.jobs.states import Change, State
from service.tables import Artifact, Job, Upload, UploadPart

EXHAUSTED: Final = "attempts_exhausted"


@dataclass(frozen=True)
class Lease:
    """The right to work on a job, and what is needed for it. `checkpoint` is of earlier attempts."""

    job_id: str
    epoch: int
    tenant_id: str
    owner: str
    specification: dict[str, Any]
    model_id: str
    queue: str
    attempt: int
    max_attempts: int
    checkpoint: dict[str, Any] | None


@dataclass(frozen=True)
class Beat:
    """Answer to a heartbeat."""

    cancel_requested: bool


@dataclass(frozen=True)
class NewArtifact:
    """What a job publishes: files already in the blob store."""

    format: str
    manifest: Mapping[str, Any]
    files: Sequence[FileEntry]


@dataclass(frozen=True)
class ExpiredLease:
    """A lease the sweeper took back, and the state the job got: `queued`, `failed` or `cancelled`."""

    job_id: str
    queue: str
    state: State


def _fence(lease: Lease) -> ColumnElement[bool]:
    return and_(Job.id == lease.job_id, Job.epoch == lease.epoch, Job.state == State.RUNNING)


def _lease(job: Job, owner: str) -> Lease:
    return Lease(
        job_id=job.id,
        epoch=job.epoch,
        tenant_id=job.tenant_id,
        owner=owner,
        specification=job.specification,
        model_id=job.model_id,
        queue=job.queue,
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        checkpoint=job.checkpoint,
    )


class Leases:
    """The calls of workers and sweepers. Each runs in the caller's transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ledger = Ledger(session)

    def claim(self, job_id: str, owner: str, seconds: float) -> Lease | None:
        """Takes a queued job, or one whose lease has run out.

        `owner` is made anew for each claim: asking again with it, when the answer of the first call was
        lost, gives the same lease.

        None says that there is nothing to do: the job is unknown, has ended, belongs to a live worker, is
        not due yet, or ended just now because it was to be cancelled or its attempts are used up.
        """
        job = self._ledger.lock(job_id)
        if job is None:
            return None
        if self._holds(job, owner):
            return _lease(job, owner)
        if not self._claimable(job):
            return None
        if State(job.state) is State.RUNNING and self._end_expired(job):
            return None
        self._ledger.change(
            job,
            Change.CLAIM,
            epoch=Job.epoch + 1,
            attempt=Job.attempt + 1,
            lease_owner=owner,
            lease_until=now() + microseconds(seconds),
            heartbeat_at=now(),
            started_at=func.coalesce(Job.started_at, now()),
            stage=None,
            progress=None,
            not_before=None,
        )
        return _lease(job, owner)

    def heartbeat(
        self,
        lease: Lease,
        seconds: float,
        progress: Mapping[str, Any] | None = None,
        stage: str | None = None,
    ) -> Beat:
        """Extends the lease to `seconds` from now and notes stage and progress, where given.

        Once cancelling was requested nothing extends it: should the worker die now, the user still waits no
        longer than for one that was dead before.

        Raises:
            LeaseLost: the worker was fenced off.
        """
        values: dict[str, Any] = {
            "heartbeat_at": now(),
            "lease_until": case(
                (Job.cancel_requested_at.is_(None), now() + microseconds(seconds)),
                else_=Job.cancel_requested_at + microseconds(min(seconds, CANCEL_GRACE_SECONDS)),
            ),
        }
        if progress is not None:
            values["progress"] = dict(progress)
        if stage is not None:
            values["stage"] = stage
        row = self._fenced_update(lease, values, Job.cancel_requested_at)
        return Beat(cancel_requested=row is not None)

    def save_checkpoint(self, lease: Lease, checkpoint: Mapping[str, Any]) -> None:
        """Replaces the checkpoint (`{"key", "files": [{"path", "sha256", "bytes"}]}`). Raises `LeaseLost`."""
        self._fenced_update(lease, {"checkpoint": dict(checkpoint)}, Job.id)

    def append_events(self, lease: Lease, events: Sequence[NewEvent]) -> int:
        """Appends events without gaps; returns the sequence of the last one. Raises `LeaseLost`."""
        last: int = self._fenced_update(
            lease, {"last_sequence": Job.last_sequence + len(events)}, Job.last_sequence
        )
        insert_events(self._session, lease.job_id, last, events)
        return last

    def succeed(
        self,
        lease: Lease,
        *,
        result: Mapping[str, Any],
        artifact: NewArtifact,
        report_sha256: str,
        report_html_sha256: str | None = None,
    ) -> str:
        """Publishes the artifact and ends the job; returns the artifact's id, which also becomes
        `result["artifact"]`. A request to cancel that comes this late is too late.

        Raises:
            LeaseLost: the worker was fenced off; nothing is published.
        """
        job = self._fenced(lease)
        artifact_id = ids.new_id(ids.ARTIFACT)
        self._session.execute(
            insert(Artifact).values(
                id=artifact_id,
                tenant_id=job.tenant_id,
                job_id=job.id,
                format=artifact.format,
                bytes=sum(file.bytes for file in artifact.files),
                manifest=dict(artifact.manifest),
                created_at=now(),
            )
        )
        Files(self._session, job.tenant_id).add(artifact_id, artifact.files)
        self._ledger.change(
            job,
            Change.SUCCEED,
            result={**result, "artifact": artifact_id},
            report_sha256=report_sha256,
            report_html_sha256=report_html_sha256,
        )
        return artifact_id

    def fail(self, lease: Lease, code: str, message: str) -> None:
        """Ends the job as failed, for good. Raises `LeaseLost`."""
        self._ledger.change(self._fenced(lease), Change.FAIL, error={"code": code, "message": message})

    def cancelled(self, lease: Lease) -> None:
        """Ends the job as cancelled. Raises `LeaseLost`."""
        self._ledger.change(self._fenced(lease), Change.CANCEL)

    def release(
        self,
        lease: Lease,
        *,
        charge: bool = False,
        delay_seconds: float = 0.0,
        code: str = "",
        message: str = "",
    ) -> State:
        """Gives the job back to be run again, and returns its new state.

        Args:
            lease: what is given back.
            charge: whether the attempt counts (the runner crashed) or not (the worker is being stopped).
            delay_seconds: nobody may claim the job for so long.
            code: what went wrong; kept in the error if no attempts are left.
            message: the same in words.

        A job that was to be cancelled ends as cancelled, and one without attempts left as failed.

        Raises:
            LeaseLost: the worker was fenced off.
        """
        job = self._fenced(lease)
        if job.cancel_requested_at is not None:
            self._ledger.change(job, Change.CANCEL)
        elif charge and job.attempt >= job.max_attempts:
            self._exhaust(job, f"{code}: {message}" if code else message)
        else:
            self._ledger.change(
                job,
                Change.RELEASE,
                attempt=job.attempt if charge else job.attempt - 1,
                rung_at=None,
                not_before=now() + microseconds(delay_seconds) if delay_seconds > 0 else None,
            )
        return State(job.state)

    def expire_leases(self, limit: int = 100) -> Sequence[ExpiredLease]:
        """Takes back leases that have run out: the jobs are queued again, or end when they were to be
        cancelled or have no attempts left. Sweepers working at the same time do not wait for each other."""
        overdue = (
            select(Job.id)
            .where(Job.state == State.RUNNING, Job.lease_until < now())
            .order_by(Job.lease_until)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        expired = []
        for job_id in self._session.scalars(overdue).all():
            job = self._ledger.lock(job_id)
            if job is None:
                continue
            if not self._end_expired(job):
                self._ledger.change(job, Change.EXPIRE, rung_at=None)
            expired.append(ExpiredLease(job.id, job.queue, State(job.state)))
        return expired

    def due_bells(self, limit: int = 100, ring_after_seconds: float = 30.0) -> Sequence[tuple[str, str]]:
        """Ids and queues of queued jobs for which nobody rang in the last `ring_after_seconds`, most urgent
        first. They count as rung by this call: ring after its transaction is committed."""
        due = (
            select(Job.id, Job.queue)
            .where(
                Job.state == State.QUEUED,
                or_(Job.rung_at.is_(None), Job.rung_at < now() - microseconds(ring_after_seconds)),
                or_(Job.not_before.is_(None), Job.not_before <= now()),
            )
            .order_by(Job.priority.desc(), Job.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        rows = [(job_id, queue) for job_id, queue in self._session.execute(due)]
        if rows:
            self._session.execute(
                update(Job)
                .where(Job.id.in_([job_id for job_id, _ in rows]))
                .values(rung_at=now())
                .execution_options(synchronize_session=False)
            )
        return rows

    def expire_uploads(self, limit: int = 100) -> int:
        """Ends open uploads that were not completed in time and forgets their parts; returns how many."""
        overdue = (
            select(Upload.id)
            .where(Upload.status == "open", Upload.expires_at < now())
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        expired = self._session.scalars(overdue).all()
        if expired:
            self._session.execute(delete(UploadPart).where(UploadPart.upload_id.in_(expired)))
            self._session.execute(
                update(Upload)
                .where(Upload.id.in_(expired))
                .values(status="expired")
                .execution_options(synchronize_session=False)
            )
        return len(expired)

    def _holds(self, job: Job, owner: str) -> bool:
        live = job.lease_until is not None and job.lease_until >= self._ledger.clock()
        return State(job.state) is State.RUNNING and job.lease_owner == owner and live

    def _claimable(self, job: Job) -> bool:
        clock = self._ledger.clock()
        match State(job.state):
            case State.QUEUED:
                return job.not_before is None or job.not_before <= clock
            case State.RUNNING:
                return job.lease_until is None or job.lease_until < clock
            case _:
                return False

    def _end_expired(self, job: Job) -> bool:
        """Ends a job whose lease ran out, if it must not run again; says whether it did."""
        if job.cancel_requested_at is not None:
            self._ledger.change(job, Change.CANCEL)
            return True
        if job.attempt >= job.max_attempts:
            self._exhaust(job, "its worker was lost")
            return True
        return False

    def _exhaust(self, job: Job, reason: str) -> None:
        message = (
            f"the job was started {job.attempt} times and never came to its end; the last time: {reason}"
        )
        self._ledger.change(job, Change.EXHAUST, error={"code": EXHAUSTED, "message": message})

    def _fenced(self, lease: Lease) -> Job:
        job = self._ledger.lock(lease.job_id)
        if job is None or job.epoch != lease.epoch or State(job.state) is not State.RUNNING:
            raise LeaseLost(f"job {lease.job_id} is no longer held under epoch {lease.epoch}")
        return job

    def _fenced_update(self, lease: Lease, values: Mapping[str, Any], column: Any) -> Any:
        statement = (
            update(Job)
            .where(_fence(lease))
            .values(**values)
            .returning(column)
            .execution_options(synchronize_session=False)
        )
        row = self._session.execute(statement).one_or_none()
        if row is None:
            raise LeaseLost(f"job {lease.job_id} is no longer held under epoch {lease.epoch}")
        return row[0]
