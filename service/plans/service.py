"""Plans: what a job would do, by arithmetic on the headers alone."""

from __future__ import annotations

from typing import Any

from compression.anatomy.plan import plan
from compression.errors import SpecificationInvalid
from service.auth import Call
from service.jobs.service import check


def make(call: Call, data: Any) -> dict[str, Any]:
    """The plan for a specification: valid, with what would be cut; or not valid, and why.

    Raises FormatNotPrunable, ModelNotFound, ModelNotReady, DatasetNotFound.
    """
    try:
        with call.read() as session:
            checked = check(session, call.tenant, data)
    except SpecificationInvalid as error:
        return {"valid": False, "errors": [fault.to_json() for fault in error.errors], "specification": None}
    made = plan(checked.resolved, checked.inspection, checked.timings)
    return {**made, "errors": [], "specification": checked.resolved.to_json()}
