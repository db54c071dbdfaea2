"""/v1/jobs/{id}/report: the report of a job, as data or as a page."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service import ids
from service.auth import Call, Caller
from service.downloads import disposition, file_response
from service.errors import JobNotFound, ReportNotFound
from service.jobs.repository import Jobs
from service.paging import valid_id

router = APIRouter(prefix="/jobs", tags=["jobs"])

# Names in a report come from strangers; the page needs no script and no network.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


@router.head("/{job_id}/report", include_in_schema=False)
@router.get(
    "/{job_id}/report",
    operation_id="getReport",
    summary="Read the report",
    response_class=Response,
    responses={
        200: {
            "description": "JSON, or one self-contained page with plots when text/html is accepted.",
            "content": {
                "application/json": {"schema": {"type": "object"}},
                "text/html": {"schema": {"type": "string"}},
            },
        }
    },
)
async def get_report(request: Request, job_id: str, call: Caller) -> Response:
    """What was gained and what was lost: sizes, quality before and after, latency, the exact
    specification.
    """
    page = wants_page(request.headers.get("accept", ""))
    sha256, size = await run_in_threadpool(_locate, call, valid_id(job_id, ids.JOB, JobNotFound), page)
    kind, ending = ("text/html; charset=utf-8", "html") if page else ("application/json", "json")
    headers = {"Content-Disposition": disposition(f"{job_id}.{ending}", "inline"), "Vary": "Accept"}
    if page:
        headers["Content-Security-Policy"] = PAGE_POLICY
    return file_response(request, call.blobs, sha256, size, media_type=kind, headers=headers)


def wants_page(accept: str) -> bool:
    """Whether an Accept header prefers HTML to JSON; without a preference it is JSON."""

    def weight(wanted: str) -> float:
        for entry in accept.lower().split(","):
            kind, *parameters = (part.strip() for part in entry.split(";"))
            if kind != wanted:
                continue
            quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
            try:
                return float(quality)
            except ValueError:
                return 0.0
        return 0.0

    return weight("text/html") > weight("application/json")


def _locate(call: Call, job_id: str, page: bool) -> tuple[str, int]:
    with call.read() as session:
        job = Jobs(session, call.tenant).get(job_id)
        sha256 = job.report_html_sha256 if page else job.report_sha256
        state = job.state
    if sha256 is None:
        raise ReportNotFound(f"job {job_id} is {state}; only a job that succeeded has a report")
    size = call.blobs.size(sha256)
    if size is None:
        raise ReportNotFound(f"the report of job {job_id} is gone")
    return sha256, size
