"""Models that users brought."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base, one_of, tenant_key

MODEL_STATUSES: Final = ("importing", "ready", "rejected")


class Model(Base):
    """A model: what admission found out about it. Its files are rows of `files` with `owner_id = id`."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "tenant_id", "id"), one_of("status", MODEL_STATUSES))

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = tenant_key()
    name: Mapped[str]
    status: Mapped[str]
    format: Mapped[str | None]
    architecture: Mapped[str | None]
    family: Mapped[str | None]
    task: Mapped[str | None]
    parameters: Mapped[int | None]
    bytes: Mapped[int | None]
    dtype: Mapped[str | None]
    config: Mapped[dict[str, Any] | None]
    inspection: Mapped[dict[str, Any] | None]
    error: Mapped[dict[str, Any] | None]
    # `metadata` is taken on the class by SQLAlchemy.
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata")
    created_at: Mapped[int]
    deleted_at: Mapped[int | None]
