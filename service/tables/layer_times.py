"""Times of layers that workers measured, from which plans predict latency."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base


class LayerTimes(Base):
    """A table of times as JSON (`compression.anatomy.latency.LatencyTable`). `key` is of what it is: a shape
    of model (`shape`) in one dtype on one device with its threads and software."""

    __tablename__ = "layer_times"
    __table_args__ = (Index(None, "tenant_id", "shape"),)

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    shape: Mapped[str]
    data: Mapped[dict[str, Any]]
    measured_at: Mapped[int]
