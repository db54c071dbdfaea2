"""SQL about jobs and their events. What workers do to jobs is in `service.leases.repository`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Select, func, insert, select, update
from sqlalchemy.orm import Session

from compression.specification import named_datasets
from service import ids
from service.datasets.repository import Datasets
from service.db import microseconds, now
from service.errors import JobFinished, JobNotFinished, JobNotFound
from service.jobs.states import TERMINAL, Change, State, transition
from service.models.repository import Models
from service.pagination import DEFAULT_LIMIT, Page, paginate
from service.tables import Job, JobEvent

CANCEL_GRACE_SECONDS: Final = 8.0
"""After a request to cancel, no lease lasts longer than this, whatever its worker does."""


@dataclass(frozen=True)
class NewEvent:
    """An event to be appended: one of the types `stage`, `progress`, `log`, `metric`, and its data."""

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)


class Ledger:
    """The one place that changes the state of jobs and numbers their events (system scope)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def clock(self) -> int:
        """The time of the database, in microseconds since 1970."""
        return self._session.scalars(select(now())).one()

    def lock(self, job_id: str) -> Job | None:
        """The job as it is now; nobody else changes it until the transaction ends."""
        return self._session.scalar(
            select(Job).where(Job.id == job_id).with_for_update().execution_options(populate_existing=True)
        )

    def change(self, job: Job, change: Change, **values: Any) -> Job:
        """Lets `change` happen to a locked job and records it as events.

        Args:
            job: a job from `lock`.
            change: what happens.
            values: other columns to set with it; SQL expressions are allowed.

        Raises:
            IllegalTransition: the state machine has no such change.
        """
        state = transition(State(job.state), change)
        ended: dict[str, Any] = {}
        if state in TERMINAL:
            ended = {"finished_at": now(), "checkpoint": None}
        if state is not State.RUNNING:
            ended |= {"lease_owner": None, "lease_until": None}
        self._set(job, {**ended, **values, "state": state})
        self.append(job, self._changes(job))
        return job

    def append(self, job: Job, events: Sequence[NewEvent]) -> int:
        """Appends events to a locked job; returns the sequence of the last one."""
        self._set(job, {"last_sequence": Job.last_sequence + len(events)})
        insert_events(self._session, job.id, job.last_sequence, events)
        return job.last_sequence

    @staticmethod
    def _changes(job: Job) -> list[NewEvent]:
        data: dict[str, Any] = {"state": job.state, "attempt": job.attempt}
        if job.error is not None:
            data["error"] = job.error
        events = [NewEvent("state", data)]
        if State(job.state) in TERMINAL:
            events.append(NewEvent("done", {"state": job.state}))
        return events

    def _set(self, job: Job, values: Mapping[str, Any]) -> None:
        self._session.execute(
            update(Job).where(Job.id == job.id).values(**values).execution_options(synchronize_session=False)
        )
        self._session.refresh(job)


def insert_events(session: Session, job_id: str, last: int, events: Sequence[NewEvent]) -> None:
    """Writes events whose numbers, ending with `last`, were taken from `jobs.last_sequence` before."""
    first = last - len(events) + 1
    for number, new in enumerate(events, start=first):
        session.execute(
            insert(JobEvent).values(
                job_id=job_id, sequence=number, type=new.type, data=dict(new.data), at=now()
            )
        )


class Jobs:
    """The jobs of one tenant."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._ledger = Ledger(session)

    def create(
        self,
        *,
        specification: Mapping[str, Any],
        requested: Mapping[str, Any],
        max_attempts: int,
        retry_of: str | None = None,
    ) -> Job:
        """A new queued job.

        Args:
            specification: resolved; names the model and the datasets, which stay undeletable while the job is
                active, the queue and the priority.
            requested: the specification as it was sent.
            max_attempts: how often workers may start it.
            retry_of: the job that this one repeats.

        The caller rings the broker after the transaction; the job counts as rung from its creation, so the
        sweeper rings for it only if that bell was lost.

        Raises:
            ModelNotFound, ModelNotReady, DatasetNotFound: an input is not there.
        """
        model = Models(self._session, self._tenant_id).ready(specification["model"], lock=True)
        for dataset_id in sorted(named_datasets(specification)):
            Datasets(self._session, self._tenant_id).get(dataset_id, lock=True)
        statement = insert(Job).values(
            id=ids.new_id(ids.JOB),
            tenant_id=self._tenant_id,
            state=State.QUEUED,
            specification=dict(specification),
            requested=dict(requested),
            model_id=model.id,
            queue=specification.get("queue", "cpu"),
            priority=specification.get("priority", 0),
            attempt=0,
            max_attempts=max_attempts,
            epoch=0,
            rung_at=now(),
            last_sequence=0,
            created_at=now(),
            retry_of=retry_of,
        )
        job = self._session.scalars(statement.returning(Job)).one()
        self._ledger.append(job, [NewEvent("state", {"state": State.QUEUED, "attempt": 0})])
        return job

    def get(self, job_id: str) -> Job:
        """One job. Raises `JobNotFound`."""
        row = self._session.scalar(self._mine().where(Job.id == job_id))
        if row is None:
            raise JobNotFound(f"there is no job {job_id}")
        return row

    def list(
        self,
        *,
        after: str | None = None,
        limit: int = DEFAULT_LIMIT,
        state: str | None = None,
        model_id: str | None = None,
    ) -> Page[Job]:
        """Jobs, newest first."""
        statement = self._mine()
        if state is not None:
            statement = statement.where(Job.state == state)
        if model_id is not None:
            statement = statement.where(Job.model_id == model_id)
        return paginate(self._session, statement, Job.id, after=after, limit=limit)

    def cancel(self, job_id: str) -> Job:
        """Cancels a queued job at once and asks the worker of a running one to stop. Repeatable.

        A running job whose worker is dead is cancelled by the sweeper, when the shortened lease has run out.

        Raises:
            JobNotFound: there is none.
            JobFinished: it succeeded or failed.
        """
        job = self._locked(job_id)
        state = State(job.state)
        if state is State.QUEUED:
            return self._ledger.change(job, Change.CANCEL, cancel_requested_at=now())
        if state is State.RUNNING and job.cancel_requested_at is None:
            until = min(job.lease_until or 0, self._ledger.clock() + microseconds(CANCEL_GRACE_SECONDS))
            self._session.execute(
                update(Job).where(Job.id == job.id).values(cancel_requested_at=now(), lease_until=until)
            )
            self._session.refresh(job)
        elif state in (State.SUCCEEDED, State.FAILED):
            raise JobFinished(f"job {job_id} has {state}")
        return job

    def retry(self, job_id: str) -> Job:
        """A new job with the specification of one that failed or was cancelled.

        Raises:
            JobNotFound, ModelNotFound, ModelNotReady, DatasetNotFound: the job or its inputs are not there.
            JobNotFinished: it is still queued or running.
            JobFinished: it succeeded.
        """
        old = self.get(job_id)
        if State(old.state) not in TERMINAL:
            raise JobNotFinished(f"job {job_id} is {old.state}; cancel it or wait for its end")
        if State(old.state) is State.SUCCEEDED:
            raise JobFinished(f"job {job_id} has succeeded; there is nothing to retry")
        return self.create(
            specification=old.specification,
            requested=old.requested,
            max_attempts=old.max_attempts,
            retry_of=old.id,
        )

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[JobEvent]:
        """Events behind the sequence `after`, in order. Raises `JobNotFound`."""
        self.get(job_id)
        statement = (
            select(JobEvent)
            .where(JobEvent.job_id == job_id, JobEvent.sequence > after)
            .order_by(JobEvent.sequence)
            .limit(limit)
        )
        return self._session.scalars(statement).all()

    def _locked(self, job_id: str) -> Job:
        self.get(job_id)
        job = self._ledger.lock(job_id)
        if job is None:
            raise JobNotFound(f"there is no job {job_id}")
        return job

    def _mine(self) -> Select[Job]:
        return select(Job).where(Job.tenant_id == self._tenant_id)


@dataclass(frozen=True)
class QueueFigures:
    """How many jobs of a queue are in a state, and when the oldest of them was created (microseconds)."""

    queue: str
    state: str
    jobs: int
    oldest_created_at: int


def figures(session: Session) -> Iterable[QueueFigures]:
    """Jobs of all tenants by queue and state, for metrics (system scope)."""
    statement = select(Job.queue, Job.state, func.count(), func.min(Job.created_at)).group_by(
        Job.queue, Job.state
    )
    return [QueueFigures(*row) for row in session.execute(statement)]
