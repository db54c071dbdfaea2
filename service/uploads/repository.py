"""SQL about uploads and their parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Select, delete, insert, select, update
from sqlalchemy.orm import Session

from service import ids
from service.db import microseconds, now
from service.errors import UploadClosed, UploadExpired, UploadNotFound
from service.files.repository import FileEntry, Files
from service.pagination import DEFAULT_LIMIT, Page, paginate
from service.tables import Upload, UploadPart


class Uploads:
    """The uploads of one tenant."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def create(self, *, files: Sequence[dict[str, Any]], part_bytes: int, ttl_seconds: float) -> Upload:
        """Opens an upload of `files` (`{"path", "bytes", "sha256": str | None}`), by `part_bytes`."""
        statement = insert(Upload).values(
            id=ids.new_id(ids.UPLOAD),
            tenant_id=self._tenant_id,
            status="open",
            files=list(files),
            part_bytes=part_bytes,
            expires_at=now() + microseconds(ttl_seconds),
            created_at=now(),
        )
        return self._session.scalars(statement.returning(Upload)).one()

    def get(self, upload_id: str, *, lock: bool = False) -> Upload:
        """One upload in any status. Raises `UploadNotFound`. With `lock` nobody else changes it meanwhile."""
        statement = self._mine().where(Upload.id == upload_id)
        if lock:
            statement = statement.with_for_update().execution_options(populate_existing=True)
        row = self._session.scalar(statement)
        if row is None:
            raise UploadNotFound(f"there is no upload {upload_id}")
        return row

    def open(self, upload_id: str, *, lock: bool = False) -> Upload:
        """One upload that takes parts. Raises `UploadNotFound`, `UploadClosed`, `UploadExpired`."""
        row = self.get(upload_id, lock=lock)
        if row.status == "expired" or (row.status == "open" and row.expires_at <= self._now()):
            raise UploadExpired(f"upload {upload_id} was not completed in time; open a new one")
        if row.status != "open":
            raise UploadClosed(f"upload {upload_id} is {row.status}")
        return row

    def list(self, *, after: str | None = None, limit: int = DEFAULT_LIMIT) -> Page[Upload]:
        """Uploads, newest first."""
        return paginate(self._session, self._mine(), Upload.id, after=after, limit=limit)

    def parts(self, upload_id: str) -> Sequence[UploadPart]:
        """The parts received so far, by number."""
        self.get(upload_id)
        statement = select(UploadPart).where(UploadPart.upload_id == upload_id).order_by(UploadPart.number)
        return self._session.scalars(statement).all()

    def put_part(self, upload_id: str, number: int, sha256: str, bytes: int, *, ttl_seconds: float) -> None:
        """Notes a part whose blob is stored. A part sent again replaces the earlier one; the expiry moves on.

        Raises:
            UploadNotFound, UploadClosed, UploadExpired: the upload takes no parts.
        """
        upload = self.open(upload_id, lock=True)
        self._session.execute(
            delete(UploadPart).where(UploadPart.upload_id == upload.id, UploadPart.number == number)
        )
        self._session.execute(
            insert(UploadPart).values(upload_id=upload.id, number=number, sha256=sha256, bytes=bytes)
        )
        self._session.execute(
            update(Upload).where(Upload.id == upload.id).values(expires_at=now() + microseconds(ttl_seconds))
        )

    def complete(self, upload_id: str, files: Iterable[FileEntry]) -> Upload:
        """Closes an upload whose `files` are stored whole; its parts are forgotten.

        Raises:
            UploadNotFound, UploadClosed, UploadExpired: the upload cannot be completed (any more).
        """
        upload = self.open(upload_id, lock=True)
        Files(self._session, self._tenant_id).add(upload.id, files)
        return self._close(upload, "completed", completed_at=now())

    def abort(self, upload_id: str) -> Upload:
        """Gives an upload up; one that is completed is freed of its files. Raises `UploadNotFound`."""
        upload = self.get(upload_id, lock=True)
        Files(self._session, self._tenant_id).remove(upload.id)
        return self._close(upload, "aborted")

    def _close(self, upload: Upload, status: str, **values: Any) -> Upload:
        self._session.execute(delete(UploadPart).where(UploadPart.upload_id == upload.id))
        self._session.execute(update(Upload).where(Upload.id == upload.id).values(status=status, **values))
        self._session.refresh(upload)
        return upload

    def _now(self) -> int:
        return self._session.scalars(select(now())).one()

    def _mine(self) -> Select[Upload]:
        return select(Upload).where(Upload.tenant_id == self._tenant_id)
