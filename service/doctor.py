"""``doctor``: what of this machine and of the configured services is in order."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from service import broker, schema, valkey
from service.blobs import open_blobs
from service.db import Database
from service.errors import ServiceError
from service.settings import Settings

Verdict = Literal["ok", "warning", "failed"]
_ROOM_BYTES: Final = 10 * 1024**3
_NETWORK_FILE_SYSTEMS: Final = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs", "ceph"}
_PROBES: Final = {
    "sandbox": "import json; from workers import sandbox; c = sandbox.probe(); "
    "print(json.dumps([c.network_denied and c.writes_denied, c.describe()]))",
    "engine": "import json, torch, transformers as t; print(json.dumps([True, "
    "f'torch {torch.__version__}, transformers {t.__version__}, {torch.cuda.device_count()} GPUs']))",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    verdict: Verdict
    subject: str
    detail: str


def examine(settings: Settings) -> list[Finding]:
    """Look at everything the service needs; never raises for what it finds."""
    return [*_machine(settings), *map(_probed, _PROBES), *_services(settings)]


def _machine(settings: Settings) -> Iterator[Finding]:
    yield Finding("ok", "python", f"{sys.version.split()[0]}, {os.cpu_count()} cores")
    yield _space(settings.home)
    system = _file_system(settings.home)
    if settings.database_url.startswith("sqlite") and system in _NETWORK_FILE_SYSTEMS:
        yield Finding(
            "failed", "storage", f"the home folder is on {system}: SQLite needs a local file system"
        )
    elif system is not None:
        yield Finding("ok", "storage", f"the home folder is on {system}")


def _space(home: Path) -> Finding:
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    verdict: Verdict = "ok" if free >= _ROOM_BYTES else "warning"
    return Finding(verdict, "space", f"{free / 1024**3:.1f} GiB free for {home}")


def _file_system(path: Path) -> str | None:
    """Type of the file system that holds the path; None where the system does not tell."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return None
    mounts = {Path(line.split()[1]): line.split()[2] for line in lines}
    return next((mounts[folder] for folder in (path, *path.parents) if folder in mounts), None)


def _probed(subject: str) -> Finding:
    """Ask a process of its own: what it needs to import does not belong into this one."""
    command = [sys.executable, "-c", _PROBES[subject]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        return Finding("warning", subject, f"not usable on this machine: {reason}")
    good, detail = json.loads(done.stdout.splitlines()[-1])
    return Finding("ok" if good else "warning", subject, detail)


def _services(settings: Settings) -> Iterator[Finding]:
    yield _checked("database", lambda: _database(settings))
    yield _checked("blobs", lambda: _blobs(settings))
    if settings.broker_url:
        answers = broker.bell(settings.broker_url).ping()
        detail = broker.warning(settings.broker_url) or "answers"
        verdict: Verdict = "failed" if not answers else "ok" if detail == "answers" else "warning"
        yield Finding(verdict, "broker", detail if answers else "does not answer")
    else:
        binary = valkey.server_binary()
        detail = "Valkey of this installation" if binary else "no Valkey here: the file system fallback"
        yield Finding("ok" if binary else "warning", "broker", f"`up` starts its own: {detail}")


def _checked(subject: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", subject, look())
    except (ServiceError, OSError, ValueError) as error:
        return Finding("failed", subject, str(error))


def _database(settings: Settings) -> str:
    location = urlsplit(settings.database_url)
    if location.scheme == "sqlite" and not Path(unquote(location.path)[1:]).exists():
        return "not made yet; `up` and `migrate` make it"
    database = Database(settings.database_url)
    try:
        current = schema.current(database)
        if current != schema.head():
            raise ValueError(f"its schema is at {current or 'nothing'}: run `migrate`")
        return f"{database.dialect} at schema {current}"
    finally:
        database.dispose()


def _blobs(settings: Settings) -> str:
    location = urlsplit(settings.blob_url)
    if location.scheme == "file" and not Path(unquote(location.path)).exists():
        return "not made yet; `up` makes it"
    open_blobs(settings).check()
    return f"{location.scheme} storage takes files"
