"""Artifacts: described and located; their bytes are streamed by the endpoints."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from service.artifacts.archive import Archive, Member
from service.artifacts.repository import Artifacts
from service.files.repository import FileEntry, Files
from service.models.service import file_list
from service.tables import Artifact
from service.times import rfc3339


def summary(artifact: Artifact) -> dict[str, Any]:
    """An artifact as lists show it."""
    return {
        "id": artifact.id,
        "job": artifact.job_id,
        "format": artifact.format,
        "bytes": artifact.bytes,
        "created_at": rfc3339(artifact.created_at),
    }


def read(session: Session, tenant: str, artifact_id: str) -> dict[str, Any]:
    """One artifact with its files and its manifest; raises ArtifactNotFound."""
    artifact = Artifacts(session, tenant).get(artifact_id)
    files = Files(session, tenant).of(artifact.id)
    return {**summary(artifact), "files": file_list(files), "manifest": artifact.manifest}


def file(session: Session, tenant: str, artifact_id: str, path: str) -> FileEntry:
    """One file; raises ArtifactNotFound, FileNotFound."""
    artifact = Artifacts(session, tenant).get(artifact_id)
    return Files(session, tenant).get(artifact.id, path)


def archive(session: Session, tenant: str, artifact_id: str) -> Archive:
    """The archive of all files; raises ArtifactNotFound."""
    artifact = Artifacts(session, tenant).get(artifact_id)
    entries = Files(session, tenant).of(artifact.id)
    return Archive([Member(entry.path, entry.sha256, entry.bytes) for entry in entries])
