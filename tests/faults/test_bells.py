"""The broker loses, repeats and invents: the database is the truth, so nothing comes of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from kombu import Connection, Exchange, Producer

from service.broker import TASK, Bell
from tests.faults.harness import PATIENCE, Site, until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def quick(site: Site) -> Iterator[Site]:
    yield site
    site.check_clean()


def test_all_messages_are_lost(quick: Site) -> None:
    jobs = [quick.submit() for _ in range(2)]
    quick.stack.wipe_broker()
    quick.worker(concurrency=2).wait_ready()
    for job in jobs:
        assert quick.check_succeeded(job).attempt == 1


def test_a_message_is_delivered_five_times(both_sites: Site) -> None:
    both_sites.worker(concurrency=4).wait_ready()
    job = both_sites.submit(None)
    both_sites.ring(job, times=5)
    done = both_sites.check_succeeded(job)
    assert (done.attempt, done.epoch) == (1, 1)
    both_sites.check_clean()


def test_stale_and_invented_messages_do_nothing(quick: Site) -> None:
    worker = quick.worker().wait_ready()
    job = quick.submit(limits={"seconds": 60})
    quick.check_succeeded(job)
    before = quick.events(job)
    quick.ring(job, times=3)
    for invented in (
        "job_00000000000000000000000000",
        "job_'; DROP TABLE jobs; --",
        "",
        None,
        7,
        {"a": [1]},
        job[:-1],
    ):
        quick.ring(invented)
    _send(quick, "workers.no_such_task", "application/json", b'[["x"], {}, {}]')
    _send(quick, TASK, "application/json", b'[["a", "b", "c"], {"d": 1}, {}]')
    _send(quick, TASK, "application/json", b"not json at all")
    _send(quick, TASK, "application/x-python-serialize", b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    after = quick.submit()
    quick.check_succeeded(after)
    assert [event.sequence for event in quick.events(job)] == [event.sequence for event in before]
    assert worker.process.poll() is None


def _send(site: Site, task: str, content_type: str, body: bytes) -> None:
    """Put a message on the queue as somebody with access to the broker could."""
    with Connection(site.broker(0)) as connection:
        Producer(connection).publish(
            body,
            exchange=Exchange(""),
            routing_key="cpu",
            content_type=content_type,
            content_encoding="utf-8",
            headers={"task": task, "id": "forged", "lang": "py"},
        )


def test_a_bell_that_cannot_be_rung_raises_nothing_and_costs_little() -> None:
    bell = Bell("redis://127.0.0.1:1/0")
    began = time.monotonic()
    assert not any(bell.ring("job_x", "cpu") for _ in range(20))
    assert time.monotonic() - began < 5
    assert not bell.ping()


def test_the_file_system_broker_carries_a_job(embedded_site: Site) -> None:
    broker = (embedded_site.folder / "bells").as_uri().replace("file:", "filesystem:", 1)
    embedded_site.worker(broker=broker).wait_ready()
    job = embedded_site.submit(None)
    assert Bell(broker).ring(job, "cpu")
    embedded_site.check_succeeded(job)
    embedded_site.check_clean()


def test_a_priority_overtakes(embedded_site: Site) -> None:
    ordinary = [embedded_site.submit(None) for _ in range(2)]
    urgent = embedded_site.submit(None, priority=9)
    bell = Bell(embedded_site.broker(0))
    for job in ordinary:
        assert bell.ring(job, "cpu", 0)
    assert bell.ring(urgent, "cpu", 9)
    worker = embedded_site.worker()
    until(lambda: embedded_site.job(urgent).started_at is not None, PATIENCE, worker.tail)
    assert all(embedded_site.job(job).started_at is None for job in ordinary)
    worker.signal(signal.SIGKILL)
