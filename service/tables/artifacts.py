"""Artifacts: the smaller models."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base, tenant_key


class Artifact(Base):
    """What a job published. Its files are rows of `files` with `owner_id = id`. One a job at most."""

    __tablename__ = "artifacts"
    __table_args__ = (Index(None, "tenant_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = tenant_key()
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    format: Mapped[str]
    bytes: Mapped[int]
    manifest: Mapped[dict[str, Any]]
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]
