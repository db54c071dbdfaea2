"""SQL about files: the paths inside models, datasets, completed uploads and artifacts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from service.errors import FileNotFound
from service.tables import File


@dataclass(frozen=True)
class FileEntry:
    """A path (relative, `/` between its parts) and the blob with its content."""

    path: str
    sha256: str
    bytes: int


class Files:
    """The files of one tenant."""

    def __init__(self, session: Session, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def add(self, owner_id: str, entries: Iterable[FileEntry]) -> None:
        """Gives files to an owner. A path twice is an error of the caller (IntegrityError)."""
        rows = [
            {
                "owner_id": owner_id,
                "path": entry.path,
                "tenant_id": self._tenant_id,
                "sha256": entry.sha256,
                "bytes": entry.bytes,
            }
            for entry in entries
        ]
        if rows:
            self._session.execute(insert(File), rows)

    def of(self, owner_id: str) -> Sequence[FileEntry]:
        """The files of an owner by path; none for an unknown owner."""
        statement = select(File.path, File.sha256, File.bytes).where(
            File.owner_id == owner_id, File.tenant_id == self._tenant_id
        )
        return [FileEntry(*row) for row in self._session.execute(statement.order_by(File.path))]

    def get(self, owner_id: str, path: str) -> FileEntry:
        """One file. Raises `FileNotFound`."""
        statement = select(File.path, File.sha256, File.bytes).where(
            File.owner_id == owner_id, File.path == path, File.tenant_id == self._tenant_id
        )
        row = self._session.execute(statement).one_or_none()
        if row is None:
            raise FileNotFound(f"there is no file {path!r} in {owner_id}")
        return FileEntry(*row)

    def remove(self, owner_id: str) -> None:
        """Takes all files from an owner; blobs nobody else uses are collected later."""
        self._session.execute(
            delete(File).where(File.owner_id == owner_id, File.tenant_id == self._tenant_id)
        )
