"""Resumable uploads."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base, one_of, tenant_key

UPLOAD_STATUSES: Final = ("open", "completed", "expired", "aborted")


class Upload(Base):
    """An upload in numbered parts. `files` is what was announced: `[{"path", "bytes", "sha256"}]`."""

    __tablename__ = "uploads"
    __table_args__ = (
        Index(None, "tenant_id", "id"),
        Index(None, "status", "expires_at"),
        one_of("status", UPLOAD_STATUSES),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = tenant_key()
    status: Mapped[str]
    files: Mapped[list[dict[str, Any]]]
    part_bytes: Mapped[int]
    expires_at: Mapped[int]
    created_at: Mapped[int]
    completed_at: Mapped[int | None]
