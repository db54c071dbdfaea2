"""Tenants: everything a user sees belongs to one."""

from __future__ import annotations

from typing import Final

from sqlalchemy.orm import Mapped, mapped_column

from service.tables.base import Base

DEFAULT_TENANT: Final = "ten_default"
"""The tenant of an installation for one team; made by the first migration."""


class Tenant(Base):
    """A team or customer."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    created_at: Mapped[int]
