"""Files of models, datasets, completed uploads and artifacts: names for blobs."""

from __future__ import annotations

from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base, tenant_key


class File(Base):
    """A path inside its owner, and the blob with its content. `owner_id` is the id of any kind of owner."""

    __tablename__ = "files"
    __table_args__ = (Index(None, "sha256"),)

    owner_id: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = tenant_key()
    sha256: Mapped[str]
    bytes: Mapped[int]
