"""/v1/plans"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import JSONResponse, Response

from service.auth import Caller
from service.bodies import JsonBody, json_body
from service.jobs import examples
from service.paging import answers, takes
from service.plans import service
from service.plans.schemas import PlanRead

router = APIRouter(prefix="/plans", tags=["plans"])


@router.post(
    "",
    operation_id="createPlan",
    summary="Plan a job",
    responses=answers(PlanRead),
    openapi_extra=takes("JobSpecification", example=examples.SPECIFICATION),
)
def create_plan(call: Caller, body: Annotated[JsonBody, Depends(json_body)]) -> Response:
    """The specification of a job, answered at once without running it: valid or not and why, what would be
    cut, expected parameters, bytes, MACs, memory and time, and the latency on each device whose worker has
    timed the layers of a model of this shape (`latency.predictions`; else `latency.reason` says why there is
    none). With a target of latency that no device has times for, `pruned` is null. Nothing is stored."""
    return JSONResponse(service.make(call, body.data))
