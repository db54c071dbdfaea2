"""Parts that arrived."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, Integer
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base


class UploadPart(Base):
    """One part of an upload, stored as a blob of its own until the upload is completed."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index(None, "sha256"),)

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    sha256: Mapped[str]
    bytes: Mapped[int]
