"""SQL about measured times of layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from pydantic import ValidationError
from sqlalchemy import Select, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from compression.anatomy.latency import LatencyTable
from service.db import now
from service.tables import LayerTimes
from service.times import rfc3339

KEPT_TABLES: Final = 256
"""The newest of a tenant; older ones are measured again when they are needed."""


class Timings:
    """The tables of one tenant."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def keep(self, tables: Iterable[LatencyTable]) -> None:
        """Keeps tables, each in the place of an earlier one of the same key."""
        postgres = self._session.get_bind().dialect.name == "postgresql"
        for table in tables:
            values = {
                "tenant_id": self._tenant_id,
                "key": table.key,
                "shape": table.shape,
                "data": table.model_dump(mode="json"),
                "measured_at": now(),
            }
            changed = {name: values[name] for name in ("shape", "data", "measured_at")}
            places = ["tenant_id", "key"]
            if postgres:
                self._session.execute(
                    postgresql.insert(LayerTimes)
                    .values(**values)
                    .on_conflict_do_update(index_elements=places, set_=changed)
                )
            else:
                self._session.execute(
                    sqlite.insert(LayerTimes)
                    .values(**values)
                    .on_conflict_do_update(index_elements=places, set_=changed)
                )
        self._drop_oldest()

    def of(self, shape: str) -> list[tuple[LatencyTable, str]]:
        """The tables of models of a shape with the times they were measured at, newest first."""
        return self._read(self._mine().where(LayerTimes.shape == shape))

    def newest(self) -> Sequence[LatencyTable]:
        """All tables of the tenant."""
        return [table for table, _ in self._read(self._mine().limit(KEPT_TABLES))]

    def _mine(self) -> Select[LayerTimes]:
        return (
            select(LayerTimes)
            .where(LayerTimes.tenant_id == self._tenant_id)
            .order_by(LayerTimes.measured_at.desc(), LayerTimes.key)
        )

    def _read(self, statement: Select[LayerTimes]) -> list[tuple[LatencyTable, str]]:
        found = []
        for row in self._session.scalars(statement):
            try:
                found.append((LatencyTable.model_validate(row.data), rfc3339(row.measured_at)))
            except ValidationError:
                # Of another version of the engine, which will measure again.
                continue
        return found

    def _drop_oldest(self) -> None:
        old = self._session.scalars(
            select(LayerTimes.key)
            .where(LayerTimes.tenant_id == self._tenant_id)
            .order_by(LayerTimes.measured_at.desc(), LayerTimes.key)
            .offset(KEPT_TABLES)
        ).all()
        if old:
            self._session.execute(
                delete(LayerTimes).where(LayerTimes.tenant_id == self._tenant_id, LayerTimes.key.in_(old))
            )
