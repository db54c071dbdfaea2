"""A service without its gateway, for breaking: real workers on a stack, jobs made as the gateway makes them.

Everything here is what production runs: Celery worker processes started by their command, the real broker and
database, the real engine on a tiny model. Nothing is simulated but the moment of death.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from service import faults
from service.artifacts.repository import Artifacts
from service.auth import Call
from service.blobs import open_blobs
from service.broker import Bell
from service.datasets import service as datasets
from service.db import Database
from service.files.repository import FileEntry, Files
from service.jobs import service as jobs
from service.jobs.repository import Jobs
from service.jobs.states import TERMINAL, State
from service.models import service as models
from service.settings import Settings
from service.tables import DEFAULT_TENANT, Job, JobEvent
from tests.stacks import Stack
from tests.tiny_models import tiny_llama
from workers import processes

LEASE_SECONDS = 5.0
PATIENCE = 240.0
"""Seconds for what takes some 10 on an idle machine: a busy one is no failure."""
SPEED = {
    "SECATEUR_LEASE_SECONDS": str(LEASE_SECONDS),
    "SECATEUR_HEARTBEAT_SECONDS": "0.5",
    "SECATEUR_SWEEP_SECONDS": "0.3",
    "SECATEUR_RING_AFTER_SECONDS": "3",
    "OMP_NUM_THREADS": "1",
}
TEXT = "the quick brown fox jumps over the lazy dog and runs away from the cat number {} in the night"


class HistoryWrong(AssertionError):
    """The events of a job break a rule; the message has them all."""


@dataclass
class Worker:
    """One Celery worker: its main process, its children, and the log of all."""

    process: subprocess.Popen[bytes]
    log: Path
    ready_file: Path
    once: Path

    def wait_ready(self, seconds: float = 60.0) -> Worker:
        until(self.ready_file.exists, seconds, f"the worker is not ready: {self.tail()}")
        return self

    @property
    def fired(self) -> bool:
        """Whether the armed fault has happened."""
        return self.once.exists()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group (not to runners: they have their own)."""
        if self.process.poll() is None or number == signal.SIGKILL:
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                return

    def end(self, seconds: float = 30.0) -> int:
        """Warm shutdown of the main process; its exit status."""
        self.process.terminate()
        return self.process.wait(seconds)

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""


def until(condition: Callable[[], bool], seconds: float, message: str | Callable[[], str]) -> None:
    """Wait for the condition; an AssertionError with the message when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(message if isinstance(message, str) else message())
        time.sleep(0.03)


@dataclass
class Site:
    """One database, one blob store and any number of workers on a stack.

    Brokers are the numbered databases of the stack's one server; workers on different ones do not hear each
    other's bells, but any of them finds any job of the database by sweeping.
    """

    stack: Stack
    folder: Path
    database_url: str
    database: Database = field(init=False)
    settings: Settings = field(init=False)
    workers: list[Worker] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = self.stack.settings(
            self.folder / "home", database_url=self.database_url, blob_url=self.stack.new_blobs()
        )
        self.database = Database(self.database_url)
        self.call = Call(DEFAULT_TENANT, self.settings, self.database, open_blobs(self.settings))
        self.inputs = {"model": self._add_model(), "dataset": self._add_dataset()}

    def close(self) -> None:
        for worker in self.workers:
            worker.signal(signal.SIGKILL)
            worker.process.wait()
        self.database.dispose()

    def broker(self, number: int) -> str:
        """URL of one of the broker's numbered databases."""
        url = self.stack.broker_url
        if "virtual_host=" in url:
            return url.rsplit("=", 1)[0] + f"={number}"
        return url.rsplit("/", 1)[0] + f"/{number}"

    def worker(
        self,
        number: int = 0,
        *,
        fault: str = "",
        armed_by: str = "",
        group: str = "",
        once: bool = True,
        concurrency: int = 1,
        environment: Mapping[str, str] | None = None,
        broker: str | None = None,
    ) -> Worker:
        """Start a worker on broker `number`, with a fault armed in it and in its runners."""
        name = f"worker-{len(self.workers)}"
        marker = self.folder / "fired" / name
        marker.parent.mkdir(exist_ok=True)
        armed = {
            "SECATEUR_FAULT": fault,
            "SECATEUR_FAULT_ARMED_BY": armed_by,
            "SECATEUR_FAULT_GROUP": group,
            "SECATEUR_FAULT_ONCE": str(marker) if once else "",
        }
        ready = self.folder / f"{name}.ready"
        changes = {
            "SECATEUR_DATABASE_URL": self.database_url,
            "SECATEUR_BLOB_URL": self.settings.blob_url,
            "SECATEUR_BROKER_URL": broker or self.broker(number),
            "SECATEUR_READY_FILE": str(ready),
            **SPEED,
            **({key: value for key, value in armed.items() if value} if fault else {}),
            **(environment or {}),
        }
        environ = {**os.environ, **self.stack.environment(self.settings.home, changes)}
        command = [sys.executable, "-m", "service", "worker", "--concurrency", str(concurrency)]
        log = self.folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = Worker(process, log, ready, marker)
        self.workers.append(worker)
        return worker

    def submit(self, number: int | None = 0, *, max_attempts: int = 5, **changes: Any) -> str:
        """Make a job as the gateway does, and ring broker `number` (None: nobody hears of it)."""
        specification = {
            "model": self.inputs["model"],
            "recipe": "wanda",
            "target": {"sparsity": 0.5},
            "calibration": {"dataset": self.inputs["dataset"], "samples": 8, "sequence_length": 32},
            "evaluation": {
                "dataset": self.inputs["dataset"],
                "samples": 8,
                "sequence_length": 32,
                "measure": [],
            },
            **changes,
        }
        with self.database.read() as session:
            checked = jobs.check(session, DEFAULT_TENANT, specification)
        with self.database.session() as session:
            job = Jobs(session, DEFAULT_TENANT).create(
                specification=checked.resolved.to_json(), requested=specification, max_attempts=max_attempts
            )
        if number is not None:
            self.ring(job.id, number)
        return job.id

    def ring(self, job_id: Any, number: int = 0, times: int = 1) -> None:
        bell = Bell(self.broker(number))
        for _ in range(times):
            assert bell.ring(job_id, "cpu")

    def job(self, job_id: str) -> Job:
        with self.database.read() as session:
            return Jobs(session, DEFAULT_TENANT).get(job_id)

    def cancel(self, job_id: str) -> None:
        with self.database.session() as session:
            Jobs(session, DEFAULT_TENANT).cancel(job_id)

    def events(self, job_id: str) -> list[JobEvent]:
        with self.database.read() as session:
            return list(Jobs(session, DEFAULT_TENANT).events(job_id, limit=10_000))

    def wait(self, job_id: str, seconds: float = PATIENCE) -> Job:
        """The job once it has ended."""
        until(lambda: State(self.job(job_id).state) in TERMINAL, seconds, lambda: self.account(job_id))
        return self.job(job_id)

    def wait_stopped(self, worker: Worker, seconds: float = PATIENCE) -> int:
        """The runner that the fault `...:stop` of this worker has stopped; its pid, once it is so."""
        until(lambda: worker.fired, seconds, lambda: f"the fault never fired: {worker.tail()}")
        pid = self.runners()[-1]
        until(lambda: _state(pid) == "T", 10, "the runner was not stopped")
        return pid

    def runners(self) -> list[int]:
        """Pids of the runners that the work folders name and that live."""
        notes = [json.loads(path.read_text()) for path in sorted(self.settings.work_dir.glob("*.json"))]
        found = [note["runner"] for note in notes if "runner" in note]
        return [pid for pid, started in found if processes.start_time(pid) == started]

    def artifact(self, job_id: str) -> dict[str, str]:
        """Paths and digests of the one artifact of a job."""
        with self.database.read() as session:
            found = Artifacts(session, DEFAULT_TENANT).list(job_id=job_id).data
            if len(found) != 1:
                raise HistoryWrong(f"{len(found)} artifacts instead of one\n{self.account(job_id)}")
            return {file.path: file.sha256 for file in Files(session, DEFAULT_TENANT).of(found[0].id)}

    def account(self, job_id: str) -> str:
        """All that is known of a job, for messages."""
        job = self.job(job_id)
        lines = [f"{event.sequence} {event.type} {event.data}" for event in self.events(job_id)]
        logs = [f"== {worker.log.name}\n{worker.tail()}" for worker in self.workers]
        return "\n".join([f"{job.state} {job.error} attempt {job.attempt} epoch {job.epoch}", *lines, *logs])

    def check_history(self, job_id: str) -> None:
        """Events without gap or double, states that the machine allows, one end, and the end last."""
        events = self.events(job_id)
        if [event.sequence for event in events] != list(range(1, len(events) + 1)):
            raise HistoryWrong(f"the sequence has gaps\n{self.account(job_id)}")
        states = [event.data["state"] for event in events if event.type == "state"]
        follows = {"queued": {"running", "cancelled"}, "running": {"queued", "running", *TERMINAL}}
        steps = pairwise(states)
        if states[0] != "queued" or any(after not in follows.get(before, set()) for before, after in steps):
            raise HistoryWrong(f"impossible states {states}\n{self.account(job_id)}")
        done = [event for event in events if event.type == "done"]
        ended = State(states[-1]) in TERMINAL
        if len(done) != int(ended) or (done and events[-1] is not done[0]):
            raise HistoryWrong(f"it must end once, and last\n{self.account(job_id)}")

    def check_succeeded(self, job_id: str, expected: Mapping[str, str] | None = None) -> Job:
        """The job succeeded once, with a sound history and, where given, exactly the expected artifact."""
        job = self.wait(job_id)
        if job.state != "succeeded":
            raise HistoryWrong(self.account(job_id))
        self.check_history(job_id)
        files = self.artifact(job_id)
        if expected is not None and files != dict(expected):
            changed = {path for path in {*files, *expected} if files.get(path) != expected.get(path)}
            raise HistoryWrong(f"the artifact differs in {sorted(changed)}\n{self.account(job_id)}")
        return job

    def check_clean(self, seconds: float = 15.0) -> None:
        """No runner lives and no work folder is left."""
        until(
            lambda: not self.settings.work_dir.exists() or not list(self.settings.work_dir.iterdir()),
            seconds,
            lambda: f"left behind: {sorted(path.name for path in self.settings.work_dir.iterdir())}",
        )

    def _stored(self, path: Path, name: str) -> FileEntry:
        blob = self.call.blobs.put_file(path)
        return FileEntry(name, blob.sha256, blob.bytes)

    def _add_model(self) -> str:
        folder = tiny_llama(self.folder / "model")
        files = [self._stored(path, path.relative_to(folder).as_posix()) for path in _files(folder)]
        candidate = models.examine(self.call, "tiny", files, {})
        with self.database.session() as session:
            return str(models.create(session, DEFAULT_TENANT, candidate).body["id"])

    def _add_dataset(self) -> str:
        path = self.folder / "text.jsonl"
        path.write_text("".join(json.dumps({"text": TEXT.format(number)}) + "\n" for number in range(60)))
        candidate = datasets.examine(self.call, "text", [self._stored(path, "text.jsonl")])
        with self.database.session() as session:
            return str(datasets.create(session, DEFAULT_TENANT, candidate).body["id"])


def _files(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _state(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return text[text.rindex(")") + 2]


@contextmanager
def open_site(stack: Stack, folder: Path) -> Iterator[Site]:
    """A site with a fresh database; everything it started is gone afterwards."""
    assert not faults.armed()
    url = stack.new_database()
    site = Site(stack, folder, url)
    try:
        yield site
    finally:
        site.close()
        stack.wipe_broker()
        stack.drop_database(url)
