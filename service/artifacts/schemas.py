"""Answers of /v1/artifacts."""

from __future__ import annotations

from pydantic import Field

from service.schemas import Answer, FileRead, Json, List


class ArtifactSummary(Answer):
    """An artifact, as lists show it."""

    id: str
    job: str = Field(description="Id of the job that made it.")
    format: str
    bytes: int = Field(description="Size of all files.")
    created_at: str


class ArtifactRead(ArtifactSummary):
    """A smaller model, ready to be downloaded."""

    files: list[FileRead]
    manifest: Json


class ArtifactList(List):
    """A page of artifacts, newest first."""

    data: list[ArtifactSummary]
