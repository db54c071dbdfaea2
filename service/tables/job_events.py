"""What happened to a job, in order."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ForeignKey, Integer
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base, one_of

EVENT_TYPES: Final = ("state", "stage", "progress", "log", "metric", "done")


class JobEvent(Base):
    """One event. The sequence of a job's events starts at 1 and has no gaps."""

    __tablename__ = "job_events"
    __table_args__ = (one_of("type", EVENT_TYPES),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    at: Mapped[int]
