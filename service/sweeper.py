"""The sweeper: puts right, every few seconds, what a crash or a lost message has left behind.

Any number of them may run, in gateways and in workers: each row is taken by one statement of the database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from service.blobs import BlobStore
from service.broker import QUEUE_LIMIT, QUEUES, Bell
from service.db import Database
from service.leases.repository import Leases
from service.settings import Settings
from service.storage.collector import Collected, collect_garbage

_log = structlog.get_logger(__name__)
_BELLS: Final = 500
_GARBAGE_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Swept:
    """What one pass has done."""

    rung: int = 0
    expired_leases: int = 0
    expired_uploads: int = 0


class Sweeper:
    """A daemon thread that sweeps every ``settings.sweep_seconds``; ``chores`` are done with each pass."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        bell: Bell,
        settings: Settings,
        chores: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._bell = bell
        self._settings = settings
        self._chores = chores
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._garbage_at = time.monotonic() + _GARBAGE_SECONDS
        self.last_pass_at: float | None = None
        """Monotonic time of the end of the last pass that went through; None before the first."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits for a pass in progress, at most 10 seconds."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def sweep(self) -> Swept:
        """One pass: take back expired leases, ring for queued jobs not heard, expire uploads."""
        with self._database.session() as session:
            leases = len(Leases(session).expire_leases(_BELLS))
        with self._database.session() as session:
            uploads = Leases(session).expire_uploads(_BELLS)
        return Swept(self._ring(), leases, uploads)

    def _ring(self) -> int:
        with self._database.session() as session:
            due = Leases(session).due_bells(_BELLS, self._settings.ring_after_seconds)
        full = {queue for queue in QUEUES if due and (self._bell.waiting(queue) or 0) >= QUEUE_LIMIT}
        return sum(self._bell.ring(job_id, queue) for job_id, queue in due if queue not in full)

    def _run(self) -> None:
        while not self._stopped.is_set():
            swept = self._guarded(self.sweep)
            if swept:
                self.last_pass_at = time.monotonic()
            for chore in self._chores:
                self._guarded(chore)
            if time.monotonic() >= self._garbage_at:
                self._garbage_at = time.monotonic() + _GARBAGE_SECONDS
                self._guarded(self._collect_garbage)
            self._stopped.wait(self._settings.sweep_seconds)

    def _collect_garbage(self) -> Collected | None:
        collected = collect_garbage(self._database, self._blobs, self._settings.garbage_age_seconds)
        return collected if collected.deleted or collected.leftovers else None

    def _guarded(self, action: Callable[[], object]) -> bool:
        """Whether the action went through: whatever it meets, the thread lives on and tries again."""
        try:
            result = action()
        except Exception:
            _log.exception("sweeper.failed")
            return False
        if result not in (None, 0, Swept()):
            _log.info("sweeper.swept", result=str(result))
        return True
