"""The work folder of one lease: inputs and checkpoints go in, checkpoints and the artifact come out.

``<work_dir>/<job>-<epoch>/`` belongs to one epoch of a job and is deleted at its end; what must survive is in
the blob store. A runner writes here, so nothing found here is trusted: no link is followed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import structlog

from compression.anatomy.latency import LatencyTable
from compression.specification import named_datasets
from service import faults
from service.blobs import CHUNK_BYTES, Blob, BlobStore
from service.db import Database
from service.errors import BlobMissing
from service.files.repository import FileEntry, Files
from service.leases.repository import Lease
from service.models.repository import Models
from service.settings import Settings
from service.timings.repository import Timings
from workers import processes
from workers.cache import Measurements
from workers.sandbox import Policy
from workers.timings import lend_times

_log = structlog.get_logger(__name__)
_FOREIGN_SECONDS: Final = 30 * 86400.0
_ARTIFACT_FILES: Final = 10_000


class StagingInvalid(Exception):
    """What a runner left is not what it may leave; the message is for the log."""


class Abandoned(Exception):
    """The lease ended while its folder was being filled or emptied."""


@dataclass(frozen=True)
class Inputs:
    """What a job needs: the model's files as admitted, one file for each dataset, and known times of
    layers."""

    model: tuple[FileEntry, ...]
    datasets: Mapping[str, FileEntry]
    times: Sequence[LatencyTable] = ()

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in (*self.model, *self.datasets.values()))


def find_inputs(database: Database, lease: Lease) -> Inputs:
    """Look up the inputs of a job. Raises `ModelNotFound` and `FileNotFound` of `service.errors`."""
    with database.read() as session:
        files = Files(session, lease.tenant_id)
        model = Models(session, lease.tenant_id).get(lease.model_id)
        return Inputs(
            model=tuple(files.of(model.id)),
            datasets={name: files.of(name)[0] for name in sorted(named_datasets(lease.specification))},
            times=Timings(session, lease.tenant_id).newest(),
        )


class Staging:
    """One work folder, and beside it a note of who works there (for `sweep`)."""

    def __init__(self, settings: Settings, lease: Lease, blobs: BlobStore) -> None:
        self._settings = settings
        self._root = settings.work_dir
        self.path = self._root / f"{lease.job_id}-{lease.epoch}"
        self._note = self._root / f"{self.path.name}.json"
        self._lease = lease
        self._blobs = blobs
        self.measurements = Measurements(settings.home, lease.tenant_id)
        self.lent_times: Sequence[LatencyTable] = ()
        self._checkpoint: dict[str, dict[str, Any]] = {}
        self.abandoned = threading.Event()

    def own(self, runner: int | None = None) -> None:
        """Note that this process, and the runner once it is there, work in the folder."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        pids = {"supervisor": os.getpid()} | ({} if runner is None else {"runner": runner})
        known = {name: [pid, processes.start_time(pid)] for name, pid in pids.items()}
        self._note.write_text(json.dumps({"host": socket.gethostname(), **known}))

    def prepare(self, inputs: Inputs, device: str, threads: int) -> None:
        """Make the folder and put inputs, checkpoints of earlier attempts and ``job.json`` into it."""
        self.path.mkdir(mode=0o700)
        for folder in ("tmp", "checkpoints", "input/model"):
            (self.path / folder).mkdir(parents=True)
        readable = [self._materialise(file.sha256, f"input/model/{file.path}") for file in inputs.model]
        datasets = {}
        for name, file in inputs.datasets.items():
            datasets[name] = f"input/datasets/{name}/{PurePosixPath(file.path).name}"
            readable.append(self._materialise(file.sha256, datasets[name]))
        readable += self._restore()
        self.measurements.lend(self.path)
        self.lent_times = inputs.times
        lend_times(inputs.times, self.path)
        policy = Policy(
            work=self.path,
            hidden=tuple(hidden_paths(self._settings)),
            readable=tuple(readable),
            memory_bytes=self._lease.specification["limits"].get("memory_bytes") if device == "cpu" else None,
            file_bytes=4 * inputs.bytes + (1 << 33),
            writable=faults.folders(),
            scope_signals=not faults.armed(),
        )
        job = {
            "specification": self._lease.specification,
            "model": "input/model",
            "datasets": datasets,
            "device": device,
            "threads": threads,
            "sandbox": policy.to_json(),
        }
        (self.path / "job.json").write_text(json.dumps(job))

    def keep_checkpoint(self, names: Iterable[str]) -> list[dict[str, Any]]:
        """Store the files of a finished step; the list of all files of all steps that are still there.

        A step that the runner has discarded meanwhile leaves the list.
        """
        for name in names:
            with suppress(FileNotFoundError):
                blob = self.store(name)
                self._checkpoint[name] = {"path": name, "sha256": blob.sha256, "bytes": blob.bytes}
        gone = [name for name in self._checkpoint if not (self.path / name).is_file()]
        for name in gone:
            del self._checkpoint[name]
        return list(self._checkpoint.values())

    def store(self, name: str) -> Blob:
        """Put one file of the folder into the blob store.

        Raises `FileNotFoundError`, and `StagingInvalid` for what is no plain file inside the folder.
        """
        try:
            handle = os.open(self.path / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StagingInvalid(f"{name}: {error.strerror}") from error
        with os.fdopen(handle, "rb") as file, self._blobs.writer() as writer:
            real = Path(f"/proc/self/fd/{handle}").resolve() if Path("/proc/self/fd").exists() else None
            if not stat.S_ISREG(os.fstat(handle).st_mode) or (real and self._outside(real)):
                raise StagingInvalid(f"{name} is no plain file of the work folder")
            while chunk := file.read(CHUNK_BYTES):
                self._check()
                writer.write(chunk)
            return writer.commit()

    def store_folder(self, name: str) -> list[FileEntry]:
        """Put all files below a folder into the blob store; paths are relative to that folder, sorted."""
        root = self.path / name
        entries = []
        for path in sorted(_plain_files(root)):
            blob = self.store(path.relative_to(self.path).as_posix())
            entries.append(FileEntry(path.relative_to(root).as_posix(), blob.sha256, blob.bytes))
        if not entries:
            raise StagingInvalid(f"{name} holds no file")
        return entries

    def remove(self) -> None:
        """Delete the folder and all in it."""
        self.abandoned.set()
        shutil.rmtree(self.path, ignore_errors=True)
        self._note.unlink(missing_ok=True)

    def _restore(self) -> Iterator[Path]:
        for file in (self._lease.checkpoint or {}).get("files", []):
            # A step without all of its files is dropped by the engine and done again.
            with suppress(BlobMissing):
                yield self._materialise(file["sha256"], file["path"])
                self._checkpoint[file["path"]] = file

    def _materialise(self, sha256: str, name: str) -> Path:
        self._check()
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        self._blobs.materialise(sha256, target)
        return target.resolve()

    def _outside(self, real: Path) -> bool:
        return self.path.resolve() not in real.parents

    def _check(self) -> None:
        if self.abandoned.is_set():
            raise Abandoned(self.path.name)


def hidden_paths(settings: Settings) -> Iterator[Path]:
    """What runners must not read: the service's data, other jobs' folders among it."""
    yield from (settings.home, settings.work_dir)
    for url in (settings.blob_url, settings.database_url):
        parts = urlsplit(url)
        if parts.scheme == "file":
            yield Path(unquote(parts.path))
        elif parts.scheme.startswith("sqlite"):
            # sqlite:///relative and sqlite:////absolute
            path = Path(unquote(parts.path)[1:]).absolute()
            yield from (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm"))


def _plain_files(root: Path) -> Iterator[Path]:
    count = 0
    for folder, _, names in os.walk(root, followlinks=False):
        for name in names:
            count += 1
            if count > _ARTIFACT_FILES:
                raise StagingInvalid("too many files in the artifact")
            yield Path(folder) / name


def sweep(root: Path) -> int:
    """Delete folders whose supervisor is gone, and end runners that outlived it; how many there were."""
    swept = 0
    for note in root.glob("*.json"):
        try:
            data = json.loads(note.read_text())
            abandoned = _is_abandoned(data, time.time() - note.stat().st_mtime)
        except (OSError, ValueError):
            continue
        if not abandoned:
            continue
        runner = data.get("runner")
        if runner and data["host"] == socket.gethostname() and processes.start_time(runner[0]) == runner[1]:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(runner[0], signal.SIGKILL)
        shutil.rmtree(root / note.stem, ignore_errors=True)
        note.unlink(missing_ok=True)
        swept += 1
        _log.info("staging.swept", folder=note.stem)
    return swept


def _is_abandoned(note: Mapping[str, Any], age: float) -> bool:
    if note.get("host") != socket.gethostname():
        return age > _FOREIGN_SECONDS
    pid, started = note["supervisor"]
    return bool(processes.start_time(pid) != started)
