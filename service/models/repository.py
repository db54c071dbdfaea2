"""SQL about models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Select, insert, select, update
from sqlalchemy.orm import Session

from service import ids
from service.db import now
from service.errors import ModelInUse, ModelNotFound, ModelNotReady
from service.files.repository import FileEntry, Files
from service.jobs.states import ACTIVE
from service.pagination import DEFAULT_LIMIT, Page, paginate
from service.tables import Job, Model


class Models:
    """The models of one tenant."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(
        self,
        *,
        name: str,
        files: Iterable[FileEntry],
        status: str = "importing",
        facts: Mapping[str, Any] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Model:
        """A new model with its files. `facts` are columns that admission found: `format`, `architecture`,
        ..."""
        values = {
            **(facts or {}),
            "id": ids.new_id(ids.MODEL),
            "tenant_id": self._tenant_id,
            "name": name,
            "status": status,
            "metadata_": dict(metadata or {}),
            "created_at": now(),
        }
        model = self._session.scalars(insert(Model).values(**values).returning(Model)).one()
        Files(self._session, self._tenant_id).add(model.id, files)
        return model

    def get(self, model_id: str, *, lock: bool = False) -> Model:
        """One model that was not deleted. Raises `ModelNotFound`.

        With `lock` it cannot be deleted until the transaction ends.
        """
        statement = self._mine().where(Model.id == model_id)
        if lock:
            statement = statement.with_for_update(read=True)
        row = self._session.scalar(statement)
        if row is None:
            raise ModelNotFound(f"there is no model {model_id}")
        return row

    def ready(self, model_id: str, *, lock: bool = False) -> Model:
        """One model that jobs can use. Raises `ModelNotFound`, `ModelNotReady`."""
        row = self.get(model_id, lock=lock)
        if row.status != "ready":
            raise ModelNotReady(f"model {model_id} is {row.status}")
        return row

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Model]:
        """Models, newest first."""
        return paginate(self._session, self._mine(), Model.id, after=after, limit=limit)

    def admit(self, model_id: str, facts: Mapping[str, Any]) -> Model:
        """Ends the import well: the status becomes `ready` and the columns of `facts` are filled."""
        return self._end_import(model_id, {**facts, "status": "ready"})

    def reject(self, model_id: str, error: Mapping[str, Any]) -> Model:
        """Ends the import badly: the status becomes `rejected`, with `error` (`code`, `message`)."""
        return self._end_import(model_id, {"status": "rejected", "error": dict(error)})

    def delete(self, model_id: str) -> None:
        """Deletes a model and its files; its row stays, for the jobs that used it.

        Raises:
            ModelNotFound: there is none.
            ModelInUse: a queued or running job needs it.
        """
        self._session.execute(self._mine().where(Model.id == model_id).with_for_update())
        self.get(model_id)
        active = select(Job.id).where(Job.model_id == model_id, Job.state.in_(ACTIVE)).limit(1)
        if (job_id := self._session.scalar(active)) is not None:
            raise ModelInUse(f"job {job_id} needs model {model_id}; cancel it or wait for its end")
        self._session.execute(update(Model).where(Model.id == model_id).values(deleted_at=now()))
        Files(self._session, self._tenant_id).remove(model_id)

    def _end_import(self, model_id: str, values: Mapping[str, Any]) -> Model:
        statement = (
            update(Model)
            .where(Model.id == model_id, Model.tenant_id == self._tenant_id, Model.status == "importing")
            .values(**values)
            .returning(Model.id)
        )
        if self._session.scalar(statement) is None:
            raise ModelNotFound(f"there is no model {model_id} being imported")
        row = self.get(model_id)
        self._session.refresh(row)
        return row

    def _mine(self) -> Select[Model]:
        return select(Model).where(Model.tenant_id == self._tenant_id, Model.deleted_at.is_(None))
