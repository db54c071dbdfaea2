"""SQL about tenants."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from service import ids
from service.db import now
from service.tables import Tenant


class Tenants:
    """All tenants (system scope)."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def create(self, name: str) -> Tenant:
        """A new tenant."""
        row = insert(Tenant).values(id=ids.new_id(ids.TENANT), name=name, created_at=now()).returning(Tenant)
        return self._session.scalars(row).one()

    def get(self, tenant_id: str) -> Tenant | None:
        """The tenant, or None."""
        return self._session.get(Tenant, tenant_id)

    def all(self) -> Sequence[Tenant]:
        """Every tenant, oldest first."""
        return self._session.scalars(select(Tenant).order_by(Tenant.created_at, Tenant.id)).all()
