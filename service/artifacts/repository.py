"""SQL about artifacts. Publishing one is part of `Leases.succeed`."""

from __future__ import annotations

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from service.db import now
from service.errors import ArtifactNotFound
from service.files.repository import Files
from service.pagination import DEFAULT_LIMIT, Page, paginate
from service.tables import Artifact


class Artifacts:
    """The artifacts of one tenant."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def get(self, artifact_id: str) -> Artifact:
        """One artifact that was not deleted. Raises `ArtifactNotFound`."""
        row = self._session.scalar(self._mine().where(Artifact.id == artifact_id))
        if row is None:
            raise ArtifactNotFound(f"there is no artifact {artifact_id}")
        return row

    def list(
        self, *, after: str | None = None, limit: int = DEFAULT_LIMIT, job_id: str | None = None
    ) -> Page[Artifact]:
        """Artifacts, newest first."""
        statement = self._mine()
        if job_id is not None:
            statement = statement.where(Artifact.job_id == job_id)
        return paginate(self._session, statement, Artifact.id, after=after, limit=limit)

    def delete(self, artifact_id: str) -> None:
        """Deletes an artifact and its files; report and result of the job stay. Raises `ArtifactNotFound`."""
        row = self.get(artifact_id)
        self._session.execute(update(Artifact).where(Artifact.id == row.id).values(deleted_at=now()))
        Files(self._session, self._tenant_id).remove(row.id)

    def _mine(self) -> Select[Artifact]:
        return select(Artifact).where(Artifact.tenant_id == self._tenant_id, Artifact.deleted_at.is_(None))
