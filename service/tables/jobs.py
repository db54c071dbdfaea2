"""Jobs: the state machine's memory, and the lease that fences workers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from service.jobs.states import State
from service.tables.base import Base, one_of, tenant_key


class Job(Base):
    """A compression to be carried out. Written only by `service.jobs.repository` and
    `service.leases.repository`.

    `specification` is resolved, `requested` is as sent. `epoch` counts the claims: a worker may write as
    long as the job runs under the epoch it was given. `last_sequence` is the number of the newest event.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "tenant_id", "id"),
        Index(None, "state", "lease_until"),
        Index(None, "state", "rung_at"),
        Index(None, "model_id", "state"),
        one_of("state", State),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = tenant_key()
    state: Mapped[str]
    stage: Mapped[str | None]
    progress: Mapped[dict[str, Any] | None]
    specification: Mapped[dict[str, Any]]
    requested: Mapped[dict[str, Any]]
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    queue: Mapped[str]
    priority: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    max_attempts: Mapped[int] = mapped_column(Integer)
    epoch: Mapped[int] = mapped_column(Integer)
    lease_owner: Mapped[str | None]
    lease_until: Mapped[int | None]
    heartbeat_at: Mapped[int | None]
    cancel_requested_at: Mapped[int | None]
    rung_at: Mapped[int | None]
    not_before: Mapped[int | None]
    checkpoint: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    report_sha256: Mapped[str | None]
    report_html_sha256: Mapped[str | None]
    last_sequence: Mapped[int] = mapped_column(Integer)
    created_at: Mapped[int]
    started_at: Mapped[int | None]
    finished_at: Mapped[int | None]
    retry_of: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
