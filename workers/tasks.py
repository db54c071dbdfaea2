"""What Celery calls: the bell of one job, and the beginning and end of worker processes."""

from __future__ import annotations

import os
import re
import signal
import socket
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final

import structlog
from billiard import current_process
from celery import signals

from service import faults
from service.blobs import BlobStore, open_blobs
from service.broker import TASK, bell
from service.db import Database
from service.errors import ServiceError
from service.sweeper import Sweeper
from workers import drain, kernel, sandbox, staging
from workers.app import app, settings
from workers.cores import available_cores
from workers.lease import claim
from workers.supervisor import Placement, Supervisor

_log = structlog.get_logger(__name__)
_JOB_ID: Final = re.compile(r"job_[a-z0-9]{10,64}")


@dataclass
class _Main:
    """What the main process of a worker keeps."""

    concurrency: int = settings.worker_concurrency
    sweeper: Sweeper | None = None


_main = _Main()


@lru_cache
def _database_of(pid: int) -> Database:
    return Database(settings.database_url, pool_size=2)


@lru_cache
def _blobs_of(pid: int) -> BlobStore:
    return open_blobs(settings)


def _database() -> Database:
    """The database of this process: connections that a child inherits are neither used nor closed in it."""
    return _database_of(os.getpid())


def _blobs() -> BlobStore:
    return _blobs_of(os.getpid())


@app.task(name=TASK, ignore_result=True)  # type: ignore[untyped-decorator]
def run_job(job_id: Any) -> None:
    """A job waits: take it if nobody has it, and carry it out. A stale or forged bell does nothing."""
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        _log.warning("bell.invalid", job=repr(job_id)[:100])
        return
    if drain.draining():
        return
    with structlog.contextvars.bound_contextvars(job=job_id), drain.on_sigterm():
        try:
            _run(job_id)
        except ServiceError as error:
            # The job stays queued, or its lease runs out: the sweeper rings again.
            _log.warning("job.not_taken", error=str(error))


def _run(job_id: str) -> None:
    owner = f"{socket.gethostname()}:{os.getpid()}"
    held = claim(_database(), job_id, owner, settings)
    if held is None:
        _log.debug("bell.stale")
        return
    faults.point("after_claim")
    _log.info("job.claimed", epoch=held.lease.epoch, attempt=held.lease.attempt)
    place = placement(held.lease.queue)
    ending = Supervisor(held, _database(), _blobs(), settings, place, drain.draining).run()
    _log.info("job.left", epoch=held.lease.epoch, ending=ending)
    if ending == "released":
        bell(settings.broker_url).ring(job_id, held.lease.queue)


def placement(queue: str) -> Placement:
    """Device and threads of this child: its share of the cores, and of the GPUs the one with its number."""
    threads = max(1, available_cores() // _main.concurrency)
    if queue != "gpu":
        return Placement("cpu", threads, {"CUDA_VISIBLE_DEVICES": ""})
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    index = int(getattr(current_process(), "index", 0) or 0)
    device = visible[index % len(visible)] if visible else str(index)
    return Placement("cuda", threads, {"CUDA_VISIBLE_DEVICES": device})


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _set_up_logging(**_: Any) -> None:
    from service.telemetry import configure_logging

    configure_logging(settings.log_level)


@signals.worker_init.connect  # type: ignore[untyped-decorator]
def _begin(options: Any = None, **_: Any) -> None:
    _main.concurrency = int((options or {}).get("concurrency") or settings.worker_concurrency)


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]
def _begin_child(**_: Any) -> None:
    sandbox.hide_environment()
    # Should the main process be killed, its children give their jobs back and end.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGTERM)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _ready(**_: Any) -> None:
    staging.sweep(settings.work_dir)
    _log.info("worker.ready", sandbox=sandbox.probe().describe(), concurrency=_main.concurrency)
    chores = [partial(staging.sweep, settings.work_dir)]
    _main.sweeper = Sweeper(_database(), _blobs(), bell(settings.broker_url), settings, chores)
    _main.sweeper.start()
    if marker := os.environ.get("SECATEUR_READY_FILE"):
        Path(marker).touch()


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _shutting_down(**_: Any) -> None:
    drain.begin()


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _end(**_: Any) -> None:
    if _main.sweeper is not None:
        _main.sweeper.stop()
