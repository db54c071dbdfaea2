"""/v1/jobs"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Depends, Query, Request
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from service import ids
from service.auth import Call, Caller, Creator
from service.bodies import JsonBody, json_body, optional_json_body, parse_body
from service.errors import JobNotFound
from service.idempotency import Answer, carry_out, in_flight, json_fingerprint, recall
from service.jobs import examples, service, sse
from service.jobs.repository import Jobs
from service.jobs.schemas import EventList, JobAction, JobList, JobRead
from service.jobs.states import TERMINAL, State
from service.paging import Pages, answers, page_response, takes, valid_id
from service.tables import JobEvent
from service.times import rfc3339

router = APIRouter(prefix="/jobs", tags=["jobs"])

LONGEST_WAIT = 60
_LOOK_EVERY = 0.25


@router.post(
    "",
    operation_id="createJob",
    summary="Compress a model",
    status_code=202,
    responses=answers(JobRead, 202, example=examples.QUEUED),
    openapi_extra=takes("JobSpecification", example=examples.SPECIFICATION),
)
def create_job(request: Request, call: Creator, body: Annotated[JsonBody, Depends(json_body)]) -> Response:
    """The specification is checked and resolved against the model and the data at once; every fault is
    named. `calibration.dataset` and `evaluation.dataset` are general text; where a domain counts too, its
    text is `calibration.domain.dataset` (for recipes whose needs name a domain, such as d-pruner) and
    `evaluation.domain.dataset` (for any recipe), and the report has the two qualities apart.
    """
    with in_flight(request).hold(call):
        fingerprint = json_fingerprint(request, body.raw)
        answer = recall(call, fingerprint)
        if answer is None:
            with call.read() as session:
                checked = service.check(session, call.tenant, body.data)
            answer = carry_out(call, fingerprint, lambda session: service.create(session, call, checked))
    return _accepted(call, answer)


def _accepted(call: Call, answer: Answer) -> Response:
    response = answer.response(Location=f"/v1/jobs/{answer.body['id']}", Retry_After=service.RETRY_AFTER)
    # Committed by now. The bell is rung once the answer is on its way: a broker that hangs delays nobody.
    response.background = BackgroundTask(service.ring, call, answer)
    return response


@router.get("", operation_id="listJobs", summary="List jobs", responses=answers(JobList))
def list_jobs(
    call: Caller,
    pages: Pages,
    state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
) -> Response:
    """Newest first."""
    with call.read() as session:
        page = Jobs(session, call.tenant).list(after=pages.behind(ids.JOB), limit=pages.limit, state=state)
        return page_response(page.map(service.describe))


@router.get(
    "/{job_id}",
    operation_id="getJob",
    summary="Read a job",
    responses=answers(JobRead, example=examples.SUCCEEDED),
)
async def get_job(
    request: Request,
    job_id: str,
    call: Caller,
    wait: Annotated[
        int,
        Query(ge=0, le=LONGEST_WAIT, description="Seconds to hold the answer back until the job has ended."),
    ] = 0,
) -> Response:
    """State, stage and progress. With `wait`, the answer comes when the job has ended, or after so many
    seconds.
    """
    job_id = valid_id(job_id, ids.JOB, JobNotFound)
    end = time.monotonic() + wait
    while True:
        body: dict[str, Any] = await run_in_threadpool(_read, call, job_id)
        left = end - time.monotonic()
        if left <= 0 or State(body["state"]) in TERMINAL or await request.is_disconnected():
            return JSONResponse(body, headers=service.polling_headers(body["state"]))
        await anyio.sleep(min(_LOOK_EVERY, left))


def _read(call: Call, job_id: str) -> dict[str, Any]:
    with call.read() as session:
        return service.describe(Jobs(session, call.tenant).get(job_id))


@router.post(
    "/{job_id}/cancel",
    operation_id="cancelJob",
    summary="Stop a job",
    status_code=202,
    responses=answers(JobRead, 202) | answers(JobRead, 200, description="It is cancelled."),
    openapi_extra=takes("JobAction", example={}, required=False),
)
def cancel_job(job_id: str, call: Caller, body: Annotated[JsonBody, Depends(optional_json_body)]) -> Response:
    """A queued job ends at once, a running one within seconds. Repeating it does no harm."""
    parse_body(JobAction, body.data)
    with call.write() as session:
        job = Jobs(session, call.tenant).cancel(valid_id(job_id, ids.JOB, JobNotFound))
        status = 200 if service.finished(job) else 202
        return JSONResponse(
            service.describe(job), status_code=status, headers=service.polling_headers(job.state)
        )


@router.post(
    "/{job_id}/retry",
    operation_id="retryJob",
    summary="Run a job again",
    status_code=202,
    responses=answers(JobRead, 202),
    openapi_extra=takes("JobAction", example={}, required=False),
)
def retry_job(
    request: Request, job_id: str, call: Creator, body: Annotated[JsonBody, Depends(optional_json_body)]
) -> Response:
    """A new job with the specification of one that failed or was cancelled."""
    parse_body(JobAction, body.data)
    job_id = valid_id(job_id, ids.JOB, JobNotFound)
    with in_flight(request).hold(call):
        fingerprint = json_fingerprint(request, body.raw)
        answer = carry_out(call, fingerprint, lambda session: service.retry(session, call, job_id))
    return _accepted(call, answer)


@router.get(
    "/{job_id}/events",
    operation_id="listJobEvents",
    summary="Follow a job",
    responses={
        **answers(EventList, example=examples.EVENTS),
        204: {"description": "Nothing follows: Last-Event-ID is the last event of a job that has ended."},
    },
)
async def list_events(
    request: Request,
    job_id: str,
    call: Caller,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at most (JSON only).")] = 100,
    after: Annotated[
        int, Query(ge=0, lt=1 << 31, description="Only events behind this sequence number.")
    ] = 0,
) -> Response:
    """Everything that happened so far as JSON; with `Accept: text/event-stream`, what happens from now on
    as well.

    A stream ends after the event `done`, or after ten minutes; `Last-Event-ID` continues it.
    """
    job_id = valid_id(job_id, ids.JOB, JobNotFound)
    if not sse.wants_stream(request):
        return await run_in_threadpool(_event_page, call, job_id, after, limit)
    after = max(after, sse.last_event_id(request))
    if await run_in_threadpool(_is_over, call, job_id, after):
        return Response(status_code=204)

    async def read(behind: int, most: int) -> Sequence[JobEvent]:
        return await run_in_threadpool(_events, call, job_id, behind, most)

    return sse.stream(after, read, rfc3339, request.app.state.pace)


def _events(call: Call, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
    with call.read() as session:
        return Jobs(session, call.tenant).events(job_id, after=after, limit=limit)


def _is_over(call: Call, job_id: str, after: int) -> bool:
    with call.read() as session:
        job = Jobs(session, call.tenant).get(job_id)
        return service.finished(job) and after >= job.last_sequence


def _event_page(call: Call, job_id: str, after: int, limit: int) -> Response:
    events = _events(call, job_id, after, limit + 1)
    page = [service.describe_event(event) for event in events[:limit]]
    more = len(events) > limit
    return JSONResponse({"data": page, "has_more": more, "next": page[-1]["sequence"] if more else None})
