"""What the service answers, as plain immutable values. Every one keeps the JSON it was made from in `raw`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from secateur.errors import JobCancelled, JobFailed

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})

Json = Mapping[str, Any]


@dataclass(frozen=True)
class File:
    """One stored file: path inside its model or artifact, length in bytes, sha256 in hexadecimal."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def from_json(cls, data: Json) -> File:
        return cls(str(data["path"]), int(data["bytes"]), str(data["sha256"]))


@dataclass(frozen=True)
class Problem:
    """Why a job failed or a model was rejected."""

    code: str
    message: str

    @classmethod
    def from_json(cls, data: Json | None) -> Problem | None:
        if not data:
            return None
        return cls(str(data.get("code") or "unknown"), str(data.get("message") or data.get("detail") or ""))


@dataclass(frozen=True)
class Model:
    """An uploaded model. `status` is importing, ready or rejected; `inspection` says what can be pruned."""

    id: str
    name: str
    status: str
    architecture: str | None
    task: str | None
    parameters: int | None
    bytes: int | None
    dtype: str | None
    files: tuple[File, ...]
    inspection: Json
    error: Problem | None
    created_at: str | None
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, data: Json) -> Model:
        return cls(
            id=str(data["id"]),
            name=str(data.get("name") or ""),
            status=str(data.get("status") or ""),
            architecture=data.get("architecture"),
            task=data.get("task"),
            parameters=data.get("parameters"),
            bytes=data.get("bytes"),
            dtype=data.get("dtype"),
            files=_files(data),
            inspection=data.get("inspection") or {},
            error=Problem.from_json(data.get("error")),
            created_at=data.get("created_at"),
            raw=data,
        )


@dataclass(frozen=True)
class Dataset:
    """Uploaded text. `kind` is text, labelled, pairs or messages; `rows` counts documents."""

    id: str
    name: str
    kind: str | None
    format: str | None
    rows: int | None
    bytes: int | None
    created_at: str | None
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, data: Json) -> Dataset:
        return cls(
            id=str(data["id"]),
            name=str(data.get("name") or ""),
            kind=data.get("kind"),
            format=data.get("format"),
            rows=data.get("rows"),
            bytes=data.get("bytes"),
            created_at=data.get("created_at"),
            raw=data,
        )


@dataclass(frozen=True)
class Progress:
    """How far the present stage is. `fraction` is 0..1; `eta_seconds` is an estimate for the whole job."""

    done: int | None = None
    total: int | None = None
    fraction: float | None = None
    eta_seconds: float | None = None

    @classmethod
    def from_json(cls, data: Json | None) -> Progress:
        data = data or {}
        done, total, fraction = data.get("done"), data.get("total"), data.get("fraction")
        if fraction is None and done is not None and total:
            fraction = done / total
        return cls(done, total, fraction, data.get("eta_seconds"))


@dataclass(frozen=True)
class Job:
    """A compression job. `state` is queued, running, or (final) succeeded, failed or cancelled."""

    id: str
    state: str
    stage: str | None
    progress: Progress
    attempt: int
    specification: Json
    error: Problem | None
    summary: Json
    artifact: str | None
    created_at: str | None
    started_at: str | None
    finished_at: str | None
    raw: Json = field(repr=False)

    @property
    def finished(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL_STATES

    def raise_for_state(self) -> Job:
        """Return this job unless it failed or was cancelled.

        Raises: JobFailed, JobCancelled.
        """
        if self.state == "failed":
            raise JobFailed(self)
        if self.state == "cancelled":
            raise JobCancelled(self)
        return self

    @classmethod
    def from_json(cls, data: Json) -> Job:
        result = data.get("result") or {}
        return cls(
            id=str(data["id"]),
            state=str(data["state"]),
            stage=data.get("stage"),
            progress=Progress.from_json(data.get("progress")),
            attempt=int(data.get("attempt") or 0),
            specification=data.get("specification") or {},
            error=Problem.from_json(data.get("error")),
            summary=result.get("summary") or {},
            artifact=_identifier(result.get("artifact")),
            created_at=data.get("created_at"),
            started_at=data.get("started_at"),
            finished_at=data.get("finished_at"),
            raw=data,
        )


@dataclass(frozen=True)
class Event:
    """One entry of a job's history. `type` is state, stage, progress, log, metric or done."""

    sequence: int
    type: str
    data: Json
    at: str | None = None

    @classmethod
    def from_json(cls, data: Json) -> Event:
        sequence = data.get("sequence", data.get("id", 0))
        return cls(int(sequence), str(data.get("type") or ""), data.get("data") or {}, data.get("at"))


@dataclass(frozen=True)
class Artifact:
    """A compressed model, ready to be downloaded."""

    id: str
    job_id: str | None
    format: str | None
    bytes: int | None
    files: tuple[File, ...]
    created_at: str | None
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, data: Json) -> Artifact:
        return cls(
            id=str(data["id"]),
            job_id=data.get("job_id") or _identifier(data.get("job")),
            format=data.get("format"),
            bytes=data.get("bytes"),
            files=_files(data),
            created_at=data.get("created_at"),
            raw=data,
        )


@dataclass(frozen=True)
class Recipe:
    """A method that can be asked for, with the JSON schema of its options."""

    name: str
    title: str
    summary: str
    needs: tuple[str, ...]
    families: tuple[str, ...]
    granularities: tuple[str, ...]
    targets: tuple[str, ...]
    options: Json
    raw: Json = field(repr=False)

    @classmethod
    def from_json(cls, data: Json) -> Recipe:
        return cls(
            name=str(data["name"]),
            title=str(data.get("title") or data["name"]),
            summary=str(data.get("summary") or ""),
            needs=tuple(data.get("needs") or ()),
            families=tuple(data.get("families") or ()),
            granularities=tuple(data.get("granularities") or ()),
            targets=tuple(data.get("targets") or ()),
            options=data.get("options") or {},
            raw=data,
        )


def _files(data: Json) -> tuple[File, ...]:
    return tuple(File.from_json(item) for item in data.get("files") or ())


def _identifier(value: Any) -> str | None:
    """An id given as text or as an object with an `id`."""
    if isinstance(value, Mapping):
        value = value.get("id")
    return str(value) if value else None
