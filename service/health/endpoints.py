"""/livez, /readyz, /metrics: for machines that look after the service. They need no key and tell nothing of
tenants.
"""

from __future__ import annotations

import time

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from service.errors import Fault, Unavailable
from service.health import service
from service.health.schemas import Alive, Ready
from service.paging import answers
from service.version import VERSION

router = APIRouter(tags=["health"])

_NEVER_CACHED = {"Cache-Control": "no-store"}


@router.get("/livez", operation_id="live", summary="Is the process alive?", responses=answers(Alive))
async def live() -> Response:
    """It looks at nothing: a restart would not mend a database that is away."""
    return JSONResponse({"status": "ok"}, headers=_NEVER_CACHED)


@router.get("/readyz", operation_id="ready", summary="Can requests be served?", responses=answers(Ready))
def ready(request: Request) -> Response:
    """Database, schema, storage and broker. Without a broker the answer is `degraded`: jobs are accepted
    and start later.
    """
    checks = request.app.state.readiness.checks()
    status = service.overall(checks)
    if status == "failed":
        failed = {name: check for name, check in checks.items() if check["status"] == "failed"}
        raise Unavailable(
            "; ".join(f"{name}: {check['detail']}" for name, check in failed.items()),
            errors=[
                Fault(f"/checks/{name}", check["detail"], "check_failed") for name, check in failed.items()
            ],
            headers={"Retry-After": "5"},
        )
    return JSONResponse({"status": status, "checks": checks, "version": VERSION}, headers=_NEVER_CACHED)


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Figures for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """HTTP figures of this process, and the jobs of the whole installation from the database."""
    gauges = service.job_gauges(request.app.state.database, time.time_ns() // 1000)
    return Response(
        request.app.state.metrics.page(gauges), media_type=CONTENT_TYPE_LATEST, headers=_NEVER_CACHED
    )
