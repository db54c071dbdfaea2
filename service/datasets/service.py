"""Datasets: one file each, checked when it comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from compression.loading.dataset_files import admit_dataset
from service.auth import Call
from service.datasets.repository import Datasets
from service.errors import DatasetRejected, Fault
from service.files.repository import FileEntry, Files
from service.idempotency import Answer
from service.models.service import BlobSource, file_list
from service.names import checked_name
from service.tables import Dataset
from service.times import rfc3339


@dataclass(frozen=True)
class Candidate:
    """A dataset that passed admission and has no row yet."""

    name: str
    file: FileEntry
    facts: Mapping[str, Any]


def examine(call: Call, name: str, files: Sequence[FileEntry]) -> Candidate:
    """Check the file of a dataset: text by reading it through once, images by what the file says of itself.

    Raises NameInvalid, DatasetRejected (not exactly one file) and compression.errors.DatasetInvalid, which
    names the line.
    """
    name = checked_name(name)
    if len(files) != 1:
        message = f"a dataset is one file; {len(files)} were sent"
        raise DatasetRejected(message, errors=[Fault("/files", message, "file_count")])
    file = files[0]
    facts = admit_dataset(file.path, BlobSource(call.blobs, file.sha256, file.bytes))
    return Candidate(name, file, facts.to_json())


def create(session: Session, tenant: str, candidate: Candidate) -> Answer:
    """The row of a dataset that passed admission."""
    facts = dict(candidate.facts)
    dataset = Datasets(session, tenant).create(
        name=candidate.name,
        format=candidate.file.path.rsplit(".", 1)[-1].lower(),
        kind=facts["kind"],
        rows=facts["rows"],
        bytes=candidate.file.bytes,
        facts=facts,
        files=[candidate.file],
    )
    return Answer(201, describe(dataset, [candidate.file]))


def read(session: Session, tenant: str, dataset_id: str) -> dict[str, Any]:
    """One dataset with its file; raises DatasetNotFound."""
    dataset = Datasets(session, tenant).get(dataset_id)
    return describe(dataset, Files(session, tenant).of(dataset.id))


def summary(dataset: Dataset) -> dict[str, Any]:
    """A dataset as lists show it."""
    return {
        "id": dataset.id,
        "name": dataset.name,
        "format": dataset.format,
        "kind": dataset.kind,
        "rows": dataset.rows,
        "bytes": dataset.bytes,
        "created_at": rfc3339(dataset.created_at),
    }


def describe(dataset: Dataset, files: Sequence[FileEntry]) -> dict[str, Any]:
    """A dataset with everything that is known of it."""
    return {**summary(dataset), "facts": dataset.facts, "files": file_list(files)}
