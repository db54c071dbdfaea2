"""SQL about datasets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Select, insert, select, update
from sqlalchemy.orm import Session

from compression.specification import named_datasets
from service import ids
from service.db import now
from service.errors import DatasetInUse, DatasetNotFound
from service.files.repository import FileEntry, Files
from service.jobs.states import ACTIVE
from service.pagination import DEFAULT_LIMIT, Page, paginate
from service.tables import Dataset, Job


class Datasets:
    """The datasets of one tenant."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(
        self,
        *,
        name: str,
        format: str,
        kind: str,
        rows: int,
        bytes: int,
        facts: Mapping[str, Any],
        files: Iterable[FileEntry],
    ) -> Dataset:
        """A new dataset with its files."""
        statement = insert(Dataset).values(
            id=ids.new_id(ids.DATASET),
            tenant_id=self._tenant_id,
            name=name,
            format=format,
            kind=kind,
            rows=rows,
            bytes=bytes,
            facts=dict(facts),
            created_at=now(),
        )
        dataset = self._session.scalars(statement.returning(Dataset)).one()
        Files(self._session, self._tenant_id).add(dataset.id, files)
        return dataset

    def get(self, dataset_id: str, *, lock: bool = False) -> Dataset:
        """One dataset that was not deleted. Raises `DatasetNotFound`.

        With `lock` it cannot be deleted until the transaction ends.
        """
        statement = self._mine().where(Dataset.id == dataset_id)
        if lock:
            statement = statement.with_for_update(read=True)
        row = self._session.scalar(statement)
        if row is None:
            raise DatasetNotFound(f"there is no dataset {dataset_id}")
        return row

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Dataset]:
        """Datasets, newest first."""
        return paginate(self._session, self._mine(), Dataset.id, after=after, limit=limit)

    def delete(self, dataset_id: str) -> None:
        """Deletes a dataset and its files; its row stays, for the jobs that used it.

        Raises:
            DatasetNotFound: there is none.
            DatasetInUse: a queued or running job needs it.
        """
        self._session.execute(self._mine().where(Dataset.id == dataset_id).with_for_update())
        self.get(dataset_id)
        active = select(Job.id, Job.specification).where(
            Job.tenant_id == self._tenant_id, Job.state.in_(ACTIVE)
        )
        for job_id, specification in self._session.execute(active):
            if dataset_id in named_datasets(specification):
                raise DatasetInUse(f"job {job_id} needs dataset {dataset_id}; cancel it or wait for its end")
        self._session.execute(update(Dataset).where(Dataset.id == dataset_id).values(deleted_at=now()))
        Files(self._session, self._tenant_id).remove(dataset_id)

    def _mine(self) -> Select[Dataset]:
        return select(Dataset).where(Dataset.tenant_id == self._tenant_id, Dataset.deleted_at.is_(None))
