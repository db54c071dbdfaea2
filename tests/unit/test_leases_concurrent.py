"""The lease protocol under contention: threads and processes on the same jobs, on both databases."""

from __future__ import annotations

import secrets
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.db import Database
from service.errors import JobFinished, LeaseLost
from service.jobs.repository import Jobs, NewEvent
from service.jobs.states import TERMINAL
from service.leases.repository import Leases
from service.tables import DEFAULT_TENANT
from tests import seeds

Result = TypeVar("Result")

CLAIMER = textwrap.dedent("""
    import secrets
    import sys
    from service.db import Database
    from service.leases.repository import Leases

    url, *jobs = sys.argv[1:]
    database = Database(url)
    print("ready", flush=True)
    sys.stdin.readline()
    for job in jobs:
        with database.session() as session:
            lease = Leases(session).claim(job, secrets.token_hex(4), 60)
        if lease is not None:
            print(job, lease.epoch, flush=True)
    database.dispose()
""")


def at_once(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """Results of all calls, each in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def queue(database: Database, count: int) -> list[str]:
    model = seeds.make_model(database)
    return [seeds.make_job(database, model) for _ in range(count)]


class TestClaims:
    def test_threads_claim_each_job_once(self, database: Database) -> None:
        jobs = queue(database, 15)

        def worker() -> list[str]:
            claimed = []
            for job in jobs:
                with database.session() as session:
                    if Leases(session).claim(job, secrets.token_hex(4), 60) is not None:
                        claimed.append(job)
            return claimed

        claimed = [job for result in at_once([worker] * 6) for job in result]
        assert sorted(claimed) == sorted(jobs)

    def test_processes_claim_each_job_once(self, database: Database, database_url: str) -> None:
        jobs = queue(database, 25)
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIMER, database_url, *jobs],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        lines = [line for worker in workers for line in worker.communicate(timeout=60)[0].splitlines()]
        assert all(worker.returncode == 0 for worker in workers)
        assert Counter(lines) == Counter(f"{job} 1" for job in jobs)

    def test_expired_lease_is_taken_over_once(self, database: Database) -> None:
        for job in queue(database, 8):
            seeds.claim(database, job, seconds=-1)

            def take(job: str = job) -> int | None:
                with database.session() as session:
                    lease = Leases(session).claim(job, secrets.token_hex(4), 60)
                return lease and lease.epoch

            def sweep() -> int | None:
                with database.session() as session:
                    Leases(session).expire_leases()
                return None

            epochs = [epoch for epoch in at_once([take, sweep, take, take]) if epoch is not None]
            assert epochs == [2] or (epochs == [] and seeds.job_row(database, job).state == "queued")


class TestSweepers:
    def test_ring_once(self, database: Database) -> None:
        jobs = queue(database, 12)
        for job in jobs:
            seeds.claim(database, job, seconds=-1)

        def sweep() -> list[str]:
            with database.session() as session:
                Leases(session).expire_leases()
            with database.session() as session:
                return [job for job, _ in Leases(session).due_bells(limit=5)]

        rung: list[str] = []
        while missing := set(jobs) - set(rung):
            found = [job for result in at_once([sweep] * 4) for job in result]
            assert found, f"never rung: {missing}"
            rung += found
        assert Counter(rung) == Counter(jobs)


class TestEvents:
    def test_no_gaps_and_no_doubles(self, database: Database) -> None:
        job = queue(database, 1)[0]
        lease = seeds.claim(database, job)

        def append(writer: int) -> None:
            for number in range(8):
                data = {"writer": writer, "number": number}
                with database.session() as session:
                    Leases(session).append_events(lease, [NewEvent("log", data)] * (1 + number % 3))

        def fail_to_append() -> None:
            for _ in range(8):
                try:
                    with database.session() as session:
                        Leases(session).append_events(lease, [NewEvent("log", {"never": True})])
                        raise LeaseLost
                except LeaseLost:
                    continue

        def cancel() -> None:
            with database.session() as session:
                Jobs(session, DEFAULT_TENANT).cancel(job)

        at_once([lambda: append(1), lambda: append(2), lambda: append(3), fail_to_append, cancel])
        with database.session() as session:
            Leases(session).cancelled(lease)
        found = seeds.snapshot(database, job)
        events = found["events"]
        assert [event[0] for event in events] == list(range(1, found["last_sequence"] + 1))
        assert len(events) == 2 + 3 * 15 + 2
        assert not any("never" in event[2] for event in events)
        for writer in (1, 2, 3):
            numbers = [event[2]["number"] for event in events if event[2].get("writer") == writer]
            assert numbers == sorted(numbers)


class TestRaces:
    def test_cancel_against_the_end(self, database: Database) -> None:
        for job in queue(database, 12):
            lease = seeds.claim(database, job)

            def cancel(job: str = job) -> str:
                try:
                    with database.session() as session:
                        return Jobs(session, DEFAULT_TENANT).cancel(job).state
                except JobFinished:
                    return "finished"

            def finish(lease=lease) -> str:
                return seeds.succeed(database, lease)

            at_once([cancel, finish, cancel])
            self._ended_once(database, job, "succeeded")

    def test_cancel_against_claim(self, database: Database) -> None:
        for job in queue(database, 12):

            def claim(job: str = job) -> bool:
                with database.session() as session:
                    return Leases(session).claim(job, secrets.token_hex(4), 60) is not None

            def cancel(job: str = job) -> str:
                with database.session() as session:
                    return Jobs(session, DEFAULT_TENANT).cancel(job).state

            claimed, state = at_once([claim, cancel])
            row = seeds.job_row(database, job)
            assert (claimed, state) in ((True, "running"), (False, "cancelled"))
            assert row.state == state
            assert row.cancel_requested_at is not None

    def test_two_ends(self, database: Database) -> None:
        for job in queue(database, 8):
            lease = seeds.claim(database, job)

            def succeed(lease=lease) -> str:
                try:
                    return seeds.succeed(database, lease)
                except LeaseLost:
                    return ""

            artifacts = [artifact for artifact in at_once([succeed] * 3) if artifact]
            assert [artifact[0] for artifact in seeds.snapshot(database, job)["artifacts"]] == artifacts
            self._ended_once(database, job, "succeeded")

    @staticmethod
    def _ended_once(database: Database, job: str, state: str) -> None:
        found = seeds.snapshot(database, job)
        ends = [event for event in found["events"] if event[2].get("state") in TERMINAL]
        assert found["state"] == state
        assert [event[1] for event in ends] == ["state", "done"]
        assert len(found["artifacts"]) == 1
