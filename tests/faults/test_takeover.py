"""Workers that stop without dying, runners that die alone, workers that are stopped politely."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.faults.harness import LEASE_SECONDS, PATIENCE, Site, until

RUNNER_ONLY = "0"

pytestmark = pytest.mark.timeout(900)


def test_a_zombie_is_fenced_off_and_changes_nothing(full_site: Site) -> None:
    zombie = full_site.worker(1, fault="mid_block:stop", group=RUNNER_ONLY).wait_ready()
    job = full_site.submit(1)
    runner = full_site.wait_stopped(zombie)
    zombie.signal(signal.SIGSTOP)
    time.sleep(LEASE_SECONDS)
    full_site.worker(2).wait_ready()
    done = full_site.check_succeeded(job)
    assert done.epoch == 2
    before, files = [(event.sequence, event.at) for event in full_site.events(job)], full_site.artifact(job)
    zombie.signal(signal.SIGCONT)
    os.kill(runner, signal.SIGCONT)
    full_site.check_clean()
    assert [(event.sequence, event.at) for event in full_site.events(job)] == before
    assert full_site.artifact(job) == files
    # It is alive and well, and takes the next job.
    again = full_site.submit(1)
    full_site.check_succeeded(again, files)


def test_a_runner_dies_alone_and_the_job_goes_on(site: Site) -> None:
    worker = site.worker(fault="after_checkpoint_rename:kill:3", group=RUNNER_ONLY).wait_ready()
    job = site.submit()
    done = site.check_succeeded(job)
    assert worker.fired
    assert done.attempt == 2
    undisturbed = site.submit()
    assert site.check_succeeded(undisturbed).attempt == 1
    assert site.artifact(job) == site.artifact(undisturbed)
    assert worker.process.poll() is None
    site.check_clean()


def test_a_resumed_job_does_not_repeat_finished_blocks(embedded_site: Site) -> None:
    embedded_site.worker(fault="mid_export:kill", group=RUNNER_ONLY).wait_ready()
    job = embedded_site.submit()
    done = embedded_site.check_succeeded(job)
    assert done.attempt == 2
    stages = [event.data["stage"] for event in embedded_site.events(job) if event.type == "stage"]
    assert stages[-1] == "verify"


def test_a_polite_stop_gives_the_job_back_uncharged(site: Site) -> None:
    leaving = site.worker(1, fault="mid_block:stop", group=RUNNER_ONLY).wait_ready()
    job = site.submit(1)
    site.wait_stopped(leaving)
    began = time.monotonic()
    assert leaving.end() == 0, leaving.tail()
    assert time.monotonic() - began < 8
    row = site.job(job)
    assert (row.state, row.attempt) == ("queued", 0)
    site.check_clean(1)
    site.worker(2).wait_ready()
    assert site.check_succeeded(job).attempt == 1


def test_stopping_the_whole_group_is_polite_too(embedded_site: Site) -> None:
    leaving = embedded_site.worker(1, fault="mid_load:stop", group=RUNNER_ONLY).wait_ready()
    job = embedded_site.submit(1)
    embedded_site.wait_stopped(leaving)
    leaving.signal(signal.SIGTERM)
    leaving.process.wait(20)
    row = embedded_site.job(job)
    assert (row.state, row.attempt) == ("queued", 0)


def test_the_main_process_dies_alone(embedded_site: Site) -> None:
    """Its children give their jobs back: nobody waits for the lease."""
    leaving = embedded_site.worker(1, fault="mid_block:stop", group=RUNNER_ONLY).wait_ready()
    job = embedded_site.submit(1)
    embedded_site.wait_stopped(leaving)
    leaving.process.kill()
    leaving.process.wait()
    until(lambda: embedded_site.job(job).state == "queued", 8, lambda: embedded_site.account(job))
    assert embedded_site.job(job).attempt == 0
    embedded_site.check_clean()


def test_attempts_come_to_an_end(site: Site) -> None:
    site.worker(fault="mid_load:kill", group=RUNNER_ONLY, once=False).wait_ready()
    job = site.submit(max_attempts=2)
    done = site.wait(job)
    assert (done.state, done.attempt) == ("failed", 2)
    assert done.error is not None
    assert done.error["code"] == "attempts_exhausted"
    # On a busy machine the lease may run out before the end of the runner is noticed.
    assert "SIGKILL" in done.error["message"] or "its worker was lost" in done.error["message"]
    site.check_history(job)
    site.check_clean()


def test_attempts_of_dead_workers_come_to_an_end(embedded_site: Site) -> None:
    job = embedded_site.submit(None, max_attempts=2)
    for number in (1, 2):
        worker = embedded_site.worker(number, fault="after_claim:kill").wait_ready()
        embedded_site.ring(job, number)
        until(lambda worker=worker: worker.fired, PATIENCE, worker.tail)  # type: ignore[misc]
    embedded_site.worker(3).wait_ready()
    done = embedded_site.wait(job)
    assert done.state == "failed"
    assert done.error is not None
    assert done.error["code"] == "attempts_exhausted"
    embedded_site.check_history(job)
