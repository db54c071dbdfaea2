"""The lease protocol on both databases: claims, fences, attempts, cancelling, bells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from service.db import Database
from service.errors import JobFinished, LeaseLost
from service.jobs.repository import Jobs, NewEvent
from service.jobs.states import State
from service.leases.repository import EXHAUSTED, Lease, Leases
from service.tables import DEFAULT_TENANT
from tests import seeds

EXPIRED = -1.0


@pytest.fixture
def job(database: Database) -> str:
    return seeds.make_job(database, seeds.make_model(database))


def cancel(database: Database, job: str) -> str:
    with database.session() as session:
        return Jobs(session, DEFAULT_TENANT).cancel(job).state


def sweep(database: Database) -> list[tuple[str, State]]:
    with database.session() as session:
        return [(expired.job_id, expired.state) for expired in Leases(session).expire_leases()]


WRITES: dict[str, Callable[[Leases, Lease], Any]] = {
    "heartbeat": lambda leases, lease: leases.heartbeat(lease, 60, {"done": 9, "total": 9}, "prune"),
    "save_checkpoint": lambda leases, lease: leases.save_checkpoint(lease, {"key": "k", "files": []}),
    "append_events": lambda leases, lease: leases.append_events(lease, [NewEvent("log", {"message": "x"})]),
    "succeed": lambda leases, lease: leases.succeed(
        lease, result={}, artifact=seeds.new_artifact(), report_sha256="b" * 64
    ),
    "fail": lambda leases, lease: leases.fail(lease, "crashed", "it crashed"),
    "cancelled": lambda leases, lease: leases.cancelled(lease),
    "release": lambda leases, lease: leases.release(lease),
    "release_charged": lambda leases, lease: leases.release(lease, charge=True),
}


class TestClaim:
    def test_queued_job(self, database: Database, job: str) -> None:
        lease = seeds.claim(database, job, owner="w1")
        row = seeds.job_row(database, job)
        assert (lease.job_id, lease.epoch, lease.attempt, lease.checkpoint) == (job, 1, 1, None)
        assert lease.specification == row.specification
        assert (row.state, row.epoch, row.attempt, row.lease_owner) == ("running", 1, 1, "w1")
        assert row.started_at is not None
        assert row.lease_until is not None
        assert 59e6 < row.lease_until - row.started_at < 61e6

    def test_running_job_is_refused(self, database: Database, job: str) -> None:
        seeds.claim(database, job)
        before = seeds.snapshot(database, job)
        with database.session() as session:
            assert Leases(session).claim(job, "w2", 60) is None
        assert seeds.snapshot(database, job) == before

    def test_unknown_job_is_refused(self, database: Database) -> None:
        with database.session() as session:
            assert Leases(session).claim("job_unknown", "w", 60) is None

    @pytest.mark.parametrize("end", ["succeed", "fail", "cancelled"])
    def test_finished_job_is_refused(self, database: Database, job: str, end: str) -> None:
        lease = seeds.claim(database, job)
        with database.session() as session:
            WRITES[end](Leases(session), lease)
        before = seeds.snapshot(database, job)
        with database.session() as session:
            assert Leases(session).claim(job, "w2", 60) is None
        assert seeds.snapshot(database, job) == before

    def test_expired_lease_is_taken_over(self, database: Database, job: str) -> None:
        first = seeds.claim(database, job, owner="w1", seconds=EXPIRED)
        with database.session() as session:
            session_start = seeds.job_row(database, job).started_at
            second = Leases(session).claim(job, "w2", 60)
        assert second is not None
        assert (first.epoch, second.epoch, second.attempt) == (1, 2, 2)
        assert seeds.job_row(database, job).started_at == session_start

    def test_checkpoint_is_handed_on(self, database: Database, job: str) -> None:
        lease = seeds.claim(database, job, seconds=EXPIRED)
        checkpoint = {"key": "k", "files": [{"path": "block-0001", "sha256": "c" * 64, "bytes": 3}]}
        with database.session() as session:
            Leases(session).save_checkpoint(lease, checkpoint)
        assert seeds.claim(database, job).checkpoint == checkpoint

    def test_not_before_is_kept(self, database: Database, job: str) -> None:
        with database.session() as session:
            Leases(session).release(_claim(session, job), delay_seconds=0.3)
        with database.session() as session:
            assert Leases(session).claim(job, "w", 60) is None
            assert list(Leases(session).due_bells()) == []
        time.sleep(0.4)
        assert seeds.claim(database, job).epoch == 2


def _claim(session: Any, job: str) -> Lease:
    lease = Leases(session).claim(job, "w", 60)
    assert lease is not None
    return lease


class TestFences:
    @pytest.mark.parametrize("write", WRITES)
    def test_writes_of_a_worker_whose_job_was_taken_over(
        self, database: Database, job: str, write: str
    ) -> None:
        stale = seeds.claim(database, job, seconds=EXPIRED)
        seeds.claim(database, job)
        self._refused(database, job, stale, write)

    @pytest.mark.parametrize("write", WRITES)
    def test_writes_of_a_worker_whose_lease_was_taken_back(
        self, database: Database, job: str, write: str
    ) -> None:
        stale = seeds.claim(database, job, seconds=EXPIRED)
        assert sweep(database) == [(job, State.QUEUED)]
        self._refused(database, job, stale, write)

    @pytest.mark.parametrize("write", WRITES)
    def test_writes_after_the_end(self, database: Database, job: str, write: str) -> None:
        stale = seeds.claim(database, job)
        seeds.succeed(database, stale)
        self._refused(database, job, stale, write)

    @pytest.mark.parametrize("write", WRITES)
    def test_writes_of_the_holder(self, database: Database, job: str, write: str) -> None:
        lease = seeds.claim(database, job)
        before = seeds.snapshot(database, job)
        with database.session() as session:
            WRITES[write](Leases(session), lease)
        assert seeds.snapshot(database, job) != before

    @staticmethod
    def _refused(database: Database, job: str, stale: Lease, write: str) -> None:
        before = seeds.snapshot(database, job)
        with pytest.raises(LeaseLost), database.session() as session:
            WRITES[write](Leases(session), stale)
        assert seeds.snapshot(database, job) == before


class TestHeartbeat:
    def test_extends_and_notes(self, database: Database, job: str) -> None:
        lease = seeds.claim(database, job, seconds=1)
        with database.session() as session:
            beat = Leases(session).heartbeat(lease, 60, {"done": 1, "total": 4}, "prune")
        row = seeds.job_row(database, job)
        assert not beat.cancel_requested
        assert (row.stage, row.progress) == ("prune", {"done": 1, "total": 4})
        assert row.lease_until is not None
        assert row.heartbeat_at is not None
        assert 59e6 < row.lease_until - row.heartbeat_at < 61e6

    def test_late_one_keeps_a_lease_that_nobody_took(self, database: Database, job: str) -> None:
        lease = seeds.claim(database, job, seconds=EXPIRED)
        with database.session() as session:
            Leases(session).heartbeat(lease, 60)
        assert sweep(database) == []


class TestAttempts:
    def test_release_is_not_charged(self, database: Database) -> None:
        job = seeds.make_job(database, seeds.make_model(database), max_attempts=1)
        for epoch in range(1, 5):
            lease = seeds.claim(database, job)
            assert (lease.epoch, lease.attempt) == (epoch, 1)
            with database.session() as session:
                assert Leases(session).release(lease) is State.QUEUED
        row = seeds.job_row(database, job)
        assert (row.state, row.attempt, row.lease_owner, row.lease_until) == ("queued", 0, None, None)

    @pytest.mark.parametrize("how", ["claim", "sweep", "release"])
    def test_exhausted(self, database: Database, how: str) -> None:
        job = seeds.make_job(database, seeds.make_model(database), max_attempts=2)
        for attempt in (1, 2):
            lease = seeds.claim(database, job, seconds=60 if how == "release" else EXPIRED)
            assert lease.attempt == attempt
            with database.session() as session:
                if how == "release":
                    Leases(session).release(lease, charge=True, code="oom_host", message="out of memory")
                elif how == "sweep":
                    Leases(session).expire_leases()
        with database.session() as session:
            assert Leases(session).claim(job, "w", 60) is None
        row = seeds.job_row(database, job)
        assert (row.state, row.attempt) == ("failed", 2)
        assert row.error is not None
        assert row.error["code"] == EXHAUSTED
        assert ("out of memory" in row.error["message"]) == (how == "release")
        assert row.finished_at is not None

    def test_sweeper_takes_only_expired_leases(self, database: Database, job: str) -> None:
        live = seeds.make_job(database, seeds.make_model(database))
        seeds.claim(database, live)
        seeds.claim(database, job, seconds=EXPIRED)
        assert sweep(database) == [(job, State.QUEUED)]
        assert sweep(database) == []
        assert seeds.job_row(database, live).state == "running"


class TestCancel:
    def test_queued(self, database: Database, job: str) -> None:
        assert cancel(database, job) == "cancelled"
        row = seeds.job_row(database, job)
        assert row.cancel_requested_at is not None
        assert row.finished_at is not None
        assert [event[1] for event in seeds.snapshot(database, job)["events"]] == ["state", "state", "done"]

    def test_running(self, database: Database, job: str) -> None:
        lease = seeds.claim(database, job)
        assert cancel(database, job) == "running"
        with database.session() as session:
            assert Leases(session).heartbeat(lease, 60).cancel_requested
        with database.session() as session:
            Leases(session).cancelled(lease)
        assert seeds.job_row(database, job).state == "cancelled"

    def test_running_with_a_dead_worker(self, database: Database, job: str) -> None:
        seeds.claim(database, job, seconds=3600)
        cancel(database, job)
        row = seeds.job_row(database, job)
        assert row.lease_until is not None
        assert row.cancel_requested_at is not None
        assert row.lease_until - row.cancel_requested_at < 10e6  # with a sweep every 5 s: under 15 s

    @pytest.mark.parametrize("how", ["claim", "sweep", "release"])
    def test_running_job_does_not_run_again(self, database: Database, job: str, how: str) -> None:
        lease = seeds.claim(database, job, seconds=EXPIRED)
        cancel(database, job)
        with database.session() as session:
            if how == "release":
                assert Leases(session).release(lease) is State.CANCELLED
            elif how == "sweep":
                assert [found.state for found in Leases(session).expire_leases()] == [State.CANCELLED]
            else:
                assert Leases(session).claim(job, "w", 60) is None
        assert seeds.job_row(database, job).state == "cancelled"

    def test_again(self, database: Database, job: str) -> None:
        cancel(database, job)
        before = seeds.snapshot(database, job)
        assert cancel(database, job) == "cancelled"
        assert seeds.snapshot(database, job) == before

    def test_finished(self, database: Database, job: str) -> None:
        seeds.succeed(database, seeds.claim(database, job))
        before = seeds.snapshot(database, job)
        with pytest.raises(JobFinished):
            cancel(database, job)
        assert seeds.snapshot(database, job) == before


class TestSucceed:
    def test_publishes(self, database: Database, job: str) -> None:
        lease = seeds.claim(database, job)
        with database.session() as session:
            Leases(session).save_checkpoint(lease, {"key": "k", "files": []})
        artifact = seeds.succeed(database, lease)
        found = seeds.snapshot(database, job)
        assert (found["state"], found["result"]) == ("succeeded", {"summary": {}, "artifact": artifact})
        assert found["artifacts"] == [(artifact, 16)]
        assert (found["checkpoint"], found["lease_owner"]) == (None, None)
        assert [event[:2] for event in found["events"]] == [
            (1, "state"),
            (2, "state"),
            (3, "state"),
            (4, "done"),
        ]

    def test_is_all_or_nothing(self, database: Database, job: str) -> None:
        lease = seeds.claim(database, job)
        before = seeds.snapshot(database, job)
        with pytest.raises(RuntimeError), database.session() as session:
            Leases(session).succeed(lease, result={}, artifact=seeds.new_artifact(), report_sha256="b" * 64)
            raise RuntimeError
        assert seeds.snapshot(database, job) == before


class TestBells:
    def test_new_job_counts_as_rung(self, database: Database, job: str) -> None:
        with database.session() as session:
            assert list(Leases(session).due_bells()) == []
            assert list(Leases(session).due_bells(ring_after_seconds=0)) != []

    def test_rung_once_an_interval(self, database: Database, job: str) -> None:
        seeds.claim(database, job, seconds=EXPIRED)
        sweep(database)
        with database.session() as session:
            assert list(Leases(session).due_bells()) == [(job, "cpu")]
        with database.session() as session:
            assert list(Leases(session).due_bells()) == []

    def test_urgent_ones_first(self, database: Database) -> None:
        model = seeds.make_model(database)
        jobs = [
            seeds.make_job(database, model, specification={"priority": priority, "queue": "gpu"})
            for priority in (0, 9, 5, 9)
        ]
        time.sleep(0.01)
        with database.session() as session:
            rung = Leases(session).due_bells(ring_after_seconds=0)
        assert list(rung) == [(jobs[index], "gpu") for index in (1, 3, 2, 0)]

    def test_running_job_is_not_rung(self, database: Database, job: str) -> None:
        seeds.claim(database, job)
        with database.session() as session:
            assert list(Leases(session).due_bells(ring_after_seconds=0)) == []
