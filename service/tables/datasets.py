"""Datasets that users brought."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base, tenant_key


class Dataset(Base):
    """Data for calibration, recovery or evaluation. Its files are rows of `files` with `owner_id = id`."""

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "tenant_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = tenant_key()
    name: Mapped[str]
    format: Mapped[str]
    kind: Mapped[str]
    rows: Mapped[int]
    bytes: Mapped[int]
    facts: Mapped[dict[str, Any]]
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]
