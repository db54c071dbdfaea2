"""Jobs: checked and resolved when they come in, described, cancelled, retried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from compression import catalogue
from compression.anatomy.graph import is_graph, read_inspection
from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import Timing, pair_tables, shape_key
from compression.loading.dataset_files import DatasetFacts
from compression.prunable import check_prunable
from compression.resolve import resolve
from compression.specification import JobSpecification, parse
from service import ids
from service.auth import Call
from service.broker import bell
from service.datasets.repository import Datasets
from service.errors import DatasetNotFound, Fault, ModelNotFound, NotFound
from service.idempotency import Answer
from service.jobs.repository import Jobs
from service.jobs.states import TERMINAL, State
from service.models.repository import Models
from service.paging import valid_id
from service.tables import Job, JobEvent, Model
from service.times import rfc3339, rfc3339_or_none
from service.timings.repository import Timings

RETRY_AFTER = "2"
"""Seconds after which asking for an unfinished job again may show something new."""


@dataclass(frozen=True)
class Checked:
    """A specification that can be run: as sent, resolved, the model it is for, and what is known of its
    latency."""

    requested: Mapping[str, Any]
    resolved: JobSpecification
    inspection: Inspection
    model: Model
    timings: Sequence[Timing] = ()


def _at(error: NotFound, pointer: str) -> NotFound:
    """The same error, with the place in the specification that names what is missing."""
    return type(error)(error.detail, errors=[Fault(pointer, error.detail, error.code)])


def _datasets(session: Session, tenant: str, specification: JobSpecification) -> dict[str, DatasetFacts]:
    facts = {}
    for pointer, dataset_id in specification.uses().items():
        try:
            row = Datasets(session, tenant).get(valid_id(dataset_id, ids.DATASET, DatasetNotFound))
        except DatasetNotFound as error:
            raise _at(error, pointer) from None
        facts[dataset_id] = DatasetFacts.from_json(row.facts)
    return facts


def check(session: Session, tenant: str, data: Any) -> Checked:
    """Read a specification, fill in its defaults and refuse what cannot work.

    Raises compression.errors.SpecificationInvalid with every fault, FormatNotPrunable, ModelNotFound,
    ModelNotReady, DatasetNotFound.
    """
    specification = parse(data)
    try:
        model = Models(session, tenant).ready(valid_id(specification.model, ids.MODEL, ModelNotFound))
    except ModelNotFound as error:
        raise _at(error, "/model") from None
    check_prunable(model.format)
    inspection = read_inspection(model.inspection or {})
    datasets = _datasets(session, tenant, specification)
    tables = [] if is_graph(inspection) else Timings(session, tenant).of(shape_key(inspection))
    known = pair_tables(specification, inspection, tables)
    resolved = resolve(specification, catalogue.load(), inspection, datasets, known)
    return Checked(data, resolved, inspection, model, pair_tables(resolved, inspection, tables))


def create(session: Session, call: Call, checked: Checked) -> Answer:
    """The row of a new job. Ring for it after the transaction."""
    job = Jobs(session, call.tenant).create(
        specification=checked.resolved.to_json(),
        requested=checked.requested,
        max_attempts=call.settings.max_attempts,
    )
    return Answer(202, describe(job))


def retry(session: Session, call: Call, job_id: str) -> Answer:
    """The row of a job that repeats a failed or cancelled one. Ring for it after the transaction."""
    return Answer(202, describe(Jobs(session, call.tenant).retry(job_id)))


def ring(call: Call, answer: Answer) -> None:
    """Tell the workers of a job that was created just now; a bell that is lost is rung again by the
    sweeper.
    """
    if answer.replayed:
        return
    specification = answer.body["specification"]
    bell(call.settings.broker_url).ring(answer.body["id"], specification["queue"], specification["priority"])


def finished(job: Job) -> bool:
    """Whether the state is terminal."""
    return State(job.state) in TERMINAL


def polling_headers(job_state: str) -> dict[str, str]:
    """Headers that tell when to ask again; none for a job that has ended."""
    if State(job_state) in TERMINAL:
        return {"Cache-Control": "no-store"}
    return {"Cache-Control": "no-store", "Retry-After": RETRY_AFTER}


def _progress(progress: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if progress is None:
        return None
    done, total = progress.get("done"), progress.get("total")
    fraction = progress.get("fraction")
    if fraction is None and done is not None and total:
        fraction = round(done / total, 4)
    return {"done": done, "total": total, "fraction": fraction, "eta_seconds": progress.get("eta_seconds")}


def _result(job: Job) -> dict[str, Any] | None:
    if job.result is None:
        return None
    return {
        "summary": job.result.get("summary", {}),
        "artifact": job.result.get("artifact"),
        "report": f"/v1/jobs/{job.id}/report",
    }


def describe(job: Job) -> dict[str, Any]:
    """A job on the wire."""
    return {
        "id": job.id,
        "state": job.state,
        "stage": job.stage,
        "progress": _progress(job.progress),
        "attempt": job.attempt,
        "specification": job.specification,
        "error": job.error,
        "result": _result(job),
        "metadata": job.specification.get("metadata") or {},
        "retry_of": job.retry_of,
        "created_at": rfc3339(job.created_at),
        "started_at": rfc3339_or_none(job.started_at),
        "finished_at": rfc3339_or_none(job.finished_at),
        "cancel_requested_at": rfc3339_or_none(job.cancel_requested_at),
    }


def describe_event(event: JobEvent) -> dict[str, Any]:
    """An event on the wire."""
    return {"sequence": event.sequence, "type": event.type, "data": event.data, "at": rfc3339(event.at)}
