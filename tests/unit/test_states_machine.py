"""The life of jobs, in random order, against a model of it: hypothesis looks for a history that differs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.artifacts.repository import Artifacts
from service.db import Database
from service.errors import JobFinished, JobNotFinished, LeaseLost
from service.jobs.repository import Jobs, NewEvent
from service.leases.repository import Lease, Leases
from service.tables import JobEvent
from tests import seeds

TERMINAL = ("succeeded", "failed", "cancelled")
LIVE, DEAD = 3600.0, -1.0
MOST_JOBS = 6


@dataclass
class Expected:
    """What the model knows of a job."""

    max_attempts: int
    state: str = "queued"
    epoch: int = 0
    attempt: int = 0
    live: bool = False
    cancelling: bool = False
    events: list[str] = field(default_factory=lambda: ["state"])

    def become(self, state: str) -> None:
        assert self.state not in TERMINAL
        self.state = state
        self.events.append("state")
        if state in TERMINAL:
            self.events.append("done")

    def run_out(self) -> None:
        """The lease has run out and somebody noticed."""
        if self.cancelling:
            self.become("cancelled")
        elif self.attempt >= self.max_attempts:
            self.become("failed")

    def holds(self, lease: Lease) -> bool:
        return self.state == "running" and self.epoch == lease.epoch


class JobLife(RuleBasedStateMachine):
    """Any number of clients, workers and sweepers; some workers are dead, some hold on to old leases."""

    database: Database
    jobs = Bundle("jobs")
    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.tenant = seeds.other_tenant(self.database)
        self.model = seeds.make_model(self.database, self.tenant)
        self.expected: dict[str, Expected] = {}

    @initialize(target=jobs, attempts=st.lists(st.integers(1, 3), min_size=1, max_size=2))
    def submit(self, attempts: list[int]) -> Any:
        made = []
        for most in attempts:
            job = seeds.make_job(self.database, self.model, self.tenant, max_attempts=most)
            self.expected[job] = Expected(most)
            made.append(job)
        return multiple(*made)

    @rule(target=leases, job=jobs, seconds=st.sampled_from([DEAD, DEAD, LIVE]))
    def claim(self, job: str, seconds: float) -> Any:
        known = self.expected[job]
        if known.state == "running" and not known.live:
            known.run_out()
        possible = known.state == "queued" or (known.state == "running" and not known.live)
        if possible:
            known.become("running")
            known.epoch += 1
            known.attempt += 1
            known.live = seconds == LIVE
        with self.database.session() as session:
            lease = Leases(session).claim(job, "worker", seconds)
        assert (lease is not None) == possible
        if lease is None:
            return multiple()
        assert (lease.epoch, lease.attempt) == (known.epoch, known.attempt)
        return lease

    @rule(lease=leases, seconds=st.sampled_from([LIVE, DEAD]))
    def heartbeat(self, lease: Lease, seconds: float) -> None:
        known = self.expected[lease.job_id]
        with self._fenced(known, lease) as session:
            beat = Leases(session).heartbeat(lease, seconds)
            known.live = seconds == LIVE
            assert beat.cancel_requested == known.cancelling

    @rule(lease=leases, count=st.integers(1, 3))
    def append(self, lease: Lease, count: int) -> None:
        known = self.expected[lease.job_id]
        with self._fenced(known, lease) as session:
            Leases(session).append_events(lease, [NewEvent("log", {"message": "x"})] * count)
            known.events += ["log"] * count

    @rule(lease=leases, charge=st.booleans())
    def release(self, lease: Lease, charge: bool) -> None:
        known = self.expected[lease.job_id]
        with self._fenced(known, lease) as session:
            Leases(session).release(lease, charge=charge)
            if known.cancelling:
                known.become("cancelled")
            elif charge and known.attempt >= known.max_attempts:
                known.become("failed")
            else:
                known.become("queued")
                known.attempt -= 0 if charge else 1

    @rule(lease=leases, how=st.sampled_from(["succeed", "fail", "cancelled"]))
    def end(self, lease: Lease, how: str) -> None:
        known = self.expected[lease.job_id]
        with self._fenced(known, lease) as session:
            if how == "succeed":
                Leases(session).succeed(
                    lease, result={}, artifact=seeds.new_artifact(), report_sha256="a" * 64
                )
                known.become("succeeded")
            elif how == "fail":
                Leases(session).fail(lease, "crashed", "it crashed")
                known.become("failed")
            else:
                Leases(session).cancelled(lease)
                known.become("cancelled")

    @precondition(lambda self: any(known.epoch > 1 for known in self.expected.values()))
    @rule(job=jobs)
    def cancel_any(self, job: str) -> None:
        self.cancel(job)

    def cancel(self, job: str) -> None:
        known = self.expected[job]
        finished = known.state in ("succeeded", "failed")
        if known.state == "queued":
            known.become("cancelled")
        elif known.state == "running":
            known.cancelling = True
        try:
            with self.database.session() as session:
                assert Jobs(session, self.tenant).cancel(job).state == known.state
            assert not finished
        except JobFinished:
            assert finished

    @precondition(lambda self: any(known.state == "running" for known in self.expected.values()))
    @rule()
    def cancel_a_running_one(self) -> None:
        self.cancel(next(job for job, known in self.expected.items() if known.state == "running"))

    @precondition(lambda self: len(self.expected) < MOST_JOBS)
    @rule(target=jobs, job=jobs)
    def retry(self, job: str) -> Any:
        known = self.expected[job]
        try:
            with self.database.session() as session:
                again = Jobs(session, self.tenant).retry(job).id
        except JobNotFinished:
            assert known.state not in TERMINAL
            return multiple()
        except JobFinished:
            assert known.state == "succeeded"
            return multiple()
        assert known.state in ("failed", "cancelled")
        self.expected[again] = Expected(known.max_attempts)
        return again

    @rule()
    def sweep(self) -> None:
        overdue = {job for job, known in self.expected.items() if known.state == "running" and not known.live}
        for job in overdue:
            known = self.expected[job]
            known.run_out()
            if known.state == "running":
                known.become("queued")
        with self.database.session() as session:
            expired = Leases(session).expire_leases()
        found = {lease.job_id: lease.state for lease in expired if lease.job_id in self.expected}
        assert found == {job: self.expected[job].state for job in overdue}

    @invariant()
    def agrees(self) -> None:
        """Every job, touched or not: a change of one must not show in another."""
        with self.database.read() as session:
            rows = {row.id: row for row in Jobs(session, self.tenant).list(limit=100).data}
            published = [artifact.job_id for artifact in Artifacts(session, self.tenant).list(limit=100).data]
            history = select(JobEvent).where(JobEvent.job_id.in_(rows)).order_by(JobEvent.sequence)
            events: dict[str, list[JobEvent]] = {job: [] for job in rows}
            for event in session.scalars(history):
                events[event.job_id].append(event)
        assert rows.keys() == self.expected.keys()
        for job, known in self.expected.items():
            row = rows[job]
            assert (row.state, row.epoch, row.attempt) == (known.state, known.epoch, known.attempt)
            assert [event.type for event in events[job]] == known.events
            assert [event.sequence for event in events[job]] == list(range(1, len(known.events) + 1))
            assert published.count(job) == (known.state == "succeeded")
            assert (row.lease_until is not None) == (known.state == "running")
            assert (row.finished_at is not None) == (known.state in TERMINAL)

    @contextmanager
    def _fenced(self, known: Expected, lease: Lease) -> Iterator[Session]:
        """A transaction of a worker, which must raise `LeaseLost` exactly if the worker was fenced off."""
        holds = known.holds(lease)
        try:
            with self.database.session() as session:
                yield session
        except LeaseLost:
            assert not holds
        else:
            assert holds, "a worker that was fenced off could write"


@pytest.mark.timeout(300)
def test_life_of_jobs(database: Database) -> None:
    class Life(JobLife):
        pass

    Life.database = database
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=50,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),  # shrinking replays for minutes; histories are short anyway
            database=None,
            derandomize=True,
        ),
    )
