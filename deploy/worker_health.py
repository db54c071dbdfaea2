"""Exit 0 when this container's worker can take jobs: its main process runs, stores and broker answer.

Run by the image's health check. That a worker is silent means nothing: it may have no job.
"""

from __future__ import annotations

import sys
from pathlib import Path

from service.blobs import open_blobs
from service.broker import bell
from service.db import Database
from service.errors import ServiceError
from service.settings import Settings

STOPPED = "TtZX"
"""States in /proc/PID/stat of a process that does not run: stopped, traced, dead."""


def worker_runs() -> bool:
    """Whether a Celery main process of this container exists and is not stopped."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        if b"workers.app" in command and state not in STOPPED:
            return True
    return False


def main() -> None:
    """Look, and say what is wrong."""
    settings = Settings()
    if not worker_runs():
        sys.exit("no worker process runs")
    try:
        Database(settings.database_url, pool_size=1).ping()
        open_blobs(settings).check()
    except (ServiceError, OSError) as error:
        sys.exit(str(error))
    if not bell(settings.broker_url).ping():
        sys.exit("the broker does not answer")


if __name__ == "__main__":
    main()
