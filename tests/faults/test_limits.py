"""Cancelling in every state and stage, and the limits of time and memory."""

from __future__ import annotations

import time

import pytest

from tests.faults.harness import PATIENCE, Site, until

RUNNER_ONLY = "0"
CANCEL_SECONDS = 15.0

pytestmark = pytest.mark.timeout(900)


def test_cancelling_a_queued_job_is_immediate(site: Site) -> None:
    job = site.submit(None)
    site.cancel(job)
    assert site.job(job).state == "cancelled"
    site.check_history(job)
    worker = site.worker().wait_ready()
    site.ring(job)
    other = site.submit()
    site.check_succeeded(other)
    assert [event.type for event in site.events(job)][-1] == "done"
    assert worker.process.poll() is None


@pytest.mark.parametrize("point", ["mid_load", "mid_block", "before_checkpoint_rename", "mid_export"])
def test_cancelling_a_running_job_takes_seconds(site: Site, point: str) -> None:
    """The runner stands still and answers no SIGTERM: the worst case."""
    worker = site.worker(fault=f"{point}:stop", group=RUNNER_ONLY).wait_ready()
    job = site.submit()
    site.wait_stopped(worker)
    began = time.monotonic()
    site.cancel(job)
    done = site.wait(job, CANCEL_SECONDS)
    assert done.state == "cancelled"
    assert time.monotonic() - began < CANCEL_SECONDS
    site.check_history(job)
    site.check_clean()
    assert worker.process.poll() is None


def test_cancelling_a_computing_job_takes_a_moment(embedded_site: Site) -> None:
    embedded_site.worker().wait_ready()
    job = embedded_site.submit()
    until(lambda: embedded_site.job(job).stage is not None, PATIENCE, lambda: embedded_site.account(job))
    began = time.monotonic()
    embedded_site.cancel(job)
    assert embedded_site.wait(job, CANCEL_SECONDS).state == "cancelled"
    assert time.monotonic() - began < 5
    embedded_site.check_clean()


def test_a_job_of_a_dead_worker_is_cancelled_too(both_sites: Site) -> None:
    dead = both_sites.worker(1, fault="after_spawn:kill").wait_ready()
    job = both_sites.submit(1)
    until(lambda: dead.fired, PATIENCE, dead.tail)
    both_sites.cancel(job)
    began = time.monotonic()
    both_sites.worker(2)
    assert both_sites.wait(job, CANCEL_SECONDS).state == "cancelled"
    assert time.monotonic() - began < CANCEL_SECONDS
    both_sites.check_history(job)


def test_cancel_and_finish_race_to_one_end(embedded_site: Site) -> None:
    embedded_site.worker(concurrency=2).wait_ready()
    jobs = [embedded_site.submit() for _ in range(4)]
    for job in jobs:
        until(
            lambda job=job: (
                embedded_site.job(job).stage in ("verify", "export")  # type: ignore[misc]
                or embedded_site.job(job).finished_at is not None
            ),
            60,
            lambda job=job: embedded_site.account(job),  # type: ignore[misc]
        )
        if embedded_site.job(job).finished_at is None:
            embedded_site.cancel(job)
        assert embedded_site.wait(job).state in ("succeeded", "cancelled")
        embedded_site.check_history(job)
    embedded_site.check_clean()


def test_a_job_out_of_time_fails(site: Site) -> None:
    """Two seconds are over before the engine is imported."""
    site.worker().wait_ready()
    job = site.submit(limits={"seconds": 2})
    done = site.wait(job)
    assert done.state == "failed"
    assert done.error == {
        "code": "time_exceeded",
        "message": "The job took longer than its limit of 2 seconds.",
    }
    site.check_history(job)
    site.check_clean()


def test_a_job_out_of_memory_fails_and_harms_nobody(site: Site) -> None:
    worker = site.worker().wait_ready()
    job = site.submit(limits={"seconds": 60, "memory_bytes": 32 << 20})
    done = site.wait(job)
    assert done.state == "failed", site.account(job)
    assert done.error is not None
    assert done.error["code"] == "memory_exceeded", site.account(job)
    site.check_history(job)
    site.check_clean()
    after = site.submit()
    site.check_succeeded(after)
    assert worker.process.poll() is None
