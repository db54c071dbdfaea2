"""What the service needs, looked at: database, schema, storage, broker."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from service import broker
from service.errors import DatabaseUnavailable, ServiceError
from service.jobs.repository import figures
from service.jobs.states import State

if TYPE_CHECKING:
    from service.blobs import BlobStore
    from service.db import Database
    from service.settings import Settings


class Readiness:
    """The checks of one gateway. The schema is looked at until it is current once: it does not go back by
    itself.
    """

    def __init__(self, settings: Settings, database: Database, blobs: BlobStore) -> None:
        self._settings, self._database, self._blobs = settings, database, blobs
        self._schema_current = False
        self._lock = threading.Lock()

    def checks(self) -> dict[str, dict[str, Any]]:
        """Every check with its status: ok, degraded (the service goes on without it) or failed."""
        return {
            "database": _guarded(self._database.ping),
            "schema": _guarded(self._schema),
            "storage": _guarded(self._blobs.check),
            "broker": self._broker(),
        }

    def _schema(self) -> None:
        with self._lock:
            if self._schema_current:
                return
            # Alembic is half a second of imports that only this first look needs.
            from service import schema

            self._schema_current = schema.is_current(self._database)
            if not self._schema_current:
                raise DatabaseUnavailable(
                    "the schema is not at the newest revision: run `python -m service migrate`"
                )

    def _broker(self) -> dict[str, Any]:
        url = self._settings.broker_url
        if not broker.bell(url).ping():
            detail = broker.warning(url) or "the broker does not answer: jobs are accepted and start later"
            return {"status": "degraded", "detail": detail}
        return {"status": "ok", "detail": broker.warning(url)}


def _guarded(check: Callable[[], None]) -> dict[str, Any]:
    try:
        check()
    except ServiceError as error:
        return {"status": "failed", "detail": error.detail}
    return {"status": "ok", "detail": None}


def overall(checks: Mapping[str, Mapping[str, Any]]) -> str:
    """The worst status of all checks."""
    found = {check["status"] for check in checks.values()}
    return next((status for status in ("failed", "degraded") if status in found), "ok")


def job_gauges(database: Database, clock: int) -> dict[str, tuple[str, str, dict[str, float]]]:
    """Figures about the jobs of the whole installation, as `telemetry.Metrics.page` takes them.

    Args:
        clock: now, in microseconds since 1970.
    """
    with database.read() as session:
        rows = list(figures(session))
    states = {str(state): 0.0 for state in State}
    waiting, oldest = {queue: 0.0 for queue in broker.QUEUES}, {queue: 0.0 for queue in broker.QUEUES}
    for row in rows:
        states[row.state] += row.jobs
        if row.state == State.QUEUED:
            waiting[row.queue] = float(row.jobs)
            oldest[row.queue] = max(0.0, (clock - row.oldest_created_at) / 1e6)
    return {
        "secateur_jobs": ("Jobs by state", "state", states),
        "secateur_jobs_queued": ("Jobs that wait for a worker", "queue", waiting),
        "secateur_jobs_queued_oldest_seconds": ("Age of the job that has waited longest", "queue", oldest),
    }
