"""Answers kept so that a repeated request is answered, not carried out again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base


class IdempotencyKey(Base):
    """A key, what it was used for, and the answer (`status` is null while the first request is running)."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    status: Mapped[int | None] = mapped_column(Integer)
    body: Mapped[dict[str, Any] | None]
    created_at: Mapped[int]
