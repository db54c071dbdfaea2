"""Models: taken in by content, described, listed, deleted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from compression.loading.admission import admit_model
from service.auth import Call
from service.blobs import BlobStore
from service.files.repository import FileEntry, Files
from service.idempotency import Answer
from service.models.repository import Models
from service.names import checked_name
from service.tables import Model
from service.times import rfc3339


@dataclass(frozen=True)
class BlobSource:
    """A stored file as the admission checks read it: a few ranges, never the whole of a weight file."""

    blobs: BlobStore
    sha256: str
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Bytes `offset` to `offset + length`, fewer at the end of the file."""
        return b"".join(self.blobs.read(self.sha256, offset, length))


@dataclass(frozen=True)
class Candidate:
    """A model that passed admission and has no row yet."""

    name: str
    files: Sequence[FileEntry]
    facts: Mapping[str, Any]
    metadata: Mapping[str, str]


def examine(call: Call, name: str, files: Sequence[FileEntry], metadata: Mapping[str, str]) -> Candidate:
    """Check the files of a model by their content.

    Raises NameInvalid, and compression.errors.ModelRejected or one of its kin, which names what is wrong
    and where.
    """
    name = checked_name(name)
    sources = {file.path: BlobSource(call.blobs, file.sha256, file.bytes) for file in files}
    admission = admit_model(sources)
    files = [_stored(call.blobs, file, admission.rewritten) for file in files]
    facts = {
        "format": admission.format,
        "architecture": admission.architecture,
        "family": admission.family,
        "task": admission.task,
        "parameters": admission.parameters,
        "bytes": admission.bytes,
        "dtype": admission.dtype,
        "config": admission.config,
        "inspection": admission.inspection,
    }
    return Candidate(name, files, facts, metadata)


def _stored(blobs: BlobStore, file: FileEntry, rewritten: Mapping[str, bytes]) -> FileEntry:
    """The file to be kept: what admission made of it where it was rewritten, such as config.json."""
    content = rewritten.get(file.path)
    if content is None:
        return file
    with blobs.writer() as writer:
        writer.write(content)
        blob = writer.commit()
    return FileEntry(file.path, blob.sha256, blob.bytes)


def create(session: Session, tenant: str, candidate: Candidate) -> Answer:
    """The row of a model that passed admission."""
    model = Models(session, tenant).create(
        name=candidate.name,
        files=candidate.files,
        status="ready",
        facts=candidate.facts,
        metadata=candidate.metadata,
    )
    return Answer(201, describe(model, candidate.files))


def read(session: Session, tenant: str, model_id: str) -> dict[str, Any]:
    """One model with its files; raises ModelNotFound."""
    model = Models(session, tenant).get(model_id)
    return describe(model, Files(session, tenant).of(model.id))


def summary(model: Model) -> dict[str, Any]:
    """A model as lists show it."""
    return {
        "id": model.id,
        "name": model.name,
        "status": model.status,
        "format": model.format,
        "architecture": model.architecture,
        "family": model.family,
        "task": model.task,
        "parameters": model.parameters,
        "bytes": model.bytes,
        "dtype": model.dtype,
        "error": model.error,
        "metadata": model.metadata_,
        "created_at": rfc3339(model.created_at),
    }


def describe(model: Model, files: Sequence[FileEntry]) -> dict[str, Any]:
    """A model with everything that is known of it."""
    return {**summary(model), "files": file_list(files), "inspection": model.inspection}


def file_list(files: Sequence[FileEntry]) -> list[dict[str, Any]]:
    """Files on the wire, by path."""
    ordered = sorted(files, key=lambda file: file.path)
    return [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in ordered]
