"""Rows that tests start from, made by the repositories themselves."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

from service.artifacts.repository import Artifacts
from service.datasets.repository import Datasets
from service.db import Database
from service.files.repository import FileEntry
from service.jobs.repository import Jobs
from service.leases.repository import Lease, Leases, NewArtifact
from service.models.repository import Models
from service.tables import DEFAULT_TENANT, Artifact, Job

FACTS: dict[str, Any] = {
    "format": "transformers",
    "architecture": "LlamaForCausalLM",
    "family": "llama",
    "task": "text-generation",
    "parameters": 1000,
    "bytes": 4000,
    "dtype": "float32",
    "config": {"hidden_size": 8},
    "inspection": {"layers": 2},
}


def entry(path: str = "model.safetensors", content: bytes | None = None) -> FileEntry:
    """A file entry; its blob is not stored."""
    content = secrets.token_bytes(8) if content is None else content
    return FileEntry(path, hashlib.sha256(content).hexdigest(), len(content))


def make_model(database: Database, tenant: str = DEFAULT_TENANT, *, name: str = "model") -> str:
    """A model that jobs can use; its id."""
    with database.session() as session:
        files = [entry(), entry("config.json")]
        return Models(session, tenant).create(name=name, files=files, status="ready", facts=FACTS).id


def make_dataset(database: Database, tenant: str = DEFAULT_TENANT, *, name: str = "data") -> str:
    """A dataset; its id."""
    with database.session() as session:
        row = Datasets(session, tenant).create(
            name=name, format="jsonl", kind="text", rows=3, bytes=30, facts={}, files=[entry("data.jsonl")]
        )
        return row.id


def make_job(
    database: Database,
    model: str,
    tenant: str = DEFAULT_TENANT,
    *,
    max_attempts: int = 5,
    specification: Mapping[str, Any] | None = None,
) -> str:
    """A queued job; its id."""
    with database.session() as session:
        resolved = {"model": model, "recipe": "magnitude", **(specification or {})}
        return (
            Jobs(session, tenant)
            .create(specification=resolved, requested={"model": model}, max_attempts=max_attempts)
            .id
        )


def claim(database: Database, job: str, *, owner: str = "worker", seconds: float = 60.0) -> Lease:
    """A lease of the job. Negative seconds make one that has run out already."""
    with database.session() as session:
        lease = Leases(session).claim(job, owner, seconds)
    assert lease is not None
    return lease


def new_artifact() -> NewArtifact:
    """What a job would publish."""
    return NewArtifact("safetensors", {"version": 1}, [entry(), entry("config.json")])


def succeed(database: Database, lease: Lease) -> str:
    """Ends the job well; the id of its artifact."""
    with database.session() as session:
        return Leases(session).succeed(
            lease, result={"summary": {}}, artifact=new_artifact(), report_sha256="a" * 64
        )


def job_row(database: Database, job: str, tenant: str = DEFAULT_TENANT) -> Job:
    """The job as it is now."""
    with database.read() as session:
        return Jobs(session, tenant).get(job)


def snapshot(database: Database, job: str, tenant: str = DEFAULT_TENANT) -> dict[str, Any]:
    """Everything about a job: its columns, events and artifacts."""
    with database.read() as session:
        row = Jobs(session, tenant).get(job)
        events = Jobs(session, tenant).events(job)
        artifacts = Artifacts(session, tenant).list(job_id=job).data
        return {
            **{column.key: getattr(row, column.key) for column in Job.__table__.columns},
            "events": [(event.sequence, event.type, event.data, event.at) for event in events],
            "artifacts": [_artifact(artifact) for artifact in artifacts],
        }


def _artifact(artifact: Artifact) -> tuple[str, int]:
    return artifact.id, artifact.bytes


def other_tenant(database: Database) -> str:
    """A second tenant; its id."""
    from service.tenants.repository import Tenants

    with database.session() as session:
        return Tenants(session).create("other").id
