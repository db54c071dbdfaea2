"""The OpenAPI document: what FastAPI finds in the routes, and what only we know (bodies read by hand,
problems, keys).
"""

from __future__ import annotations

import json
from typing import Any, Final, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from compression.specification import JobSpecification
from service.datasets.schemas import DatasetCreate
from service.jobs.schemas import JobAction
from service.keys.schemas import KeyCreate
from service.models.schemas import ModelCreate
from service.problems import MEDIA_TYPE
from service.schemas import Problem
from service.uploads.schemas import UploadComplete, UploadCreate
from service.version import VERSION

BODIES: Final[tuple[type[BaseModel], ...]] = (
    DatasetCreate,
    JobAction,
    JobSpecification,
    KeyCreate,
    ModelCreate,
    UploadComplete,
    UploadCreate,
)

DESCRIPTION = """Model compression as a service: bring a model and a target, get a smaller one with an honest
report.

Errors are `application/problem+json` with a stable `code`. Lists take `limit` and `after`. Everything that
creates takes an `Idempotency-Key`. Unknown keys and query parameters are errors that name the nearest valid
one."""

TAGS = [
    {"name": "models", "description": "What is compressed."},
    {"name": "uploads", "description": "Large files in numbered parts, resumable."},
    {"name": "datasets", "description": "Data for calibration, recovery and evaluation."},
    {"name": "jobs", "description": "Compressions: asked for, followed, cancelled, reported."},
    {"name": "artifacts", "description": "The smaller models."},
    {"name": "recipes", "description": "What can be asked for."},
    {"name": "plans", "description": "What a job would do, without running it."},
    {"name": "keys", "description": "API keys of the caller's tenant."},
    {"name": "health", "description": "For machines that look after the service."},
]


def install(app: FastAPI) -> None:
    """Make `app.openapi()` give the complete document, computed once."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = build(app)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def build(app: FastAPI) -> dict[str, Any]:
    """The document of `app`."""
    found = get_openapi(
        title="Secateur", version=VERSION, description=DESCRIPTION, routes=app.routes, tags=TAGS
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    shown: tuple[type[BaseModel], ...] = (*BODIES, Problem)
    wanted: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        (body, "validation") for body in shown
    ]
    _, bodies = models_json_schema(wanted, ref_template="#/components/schemas/{model}")
    components["schemas"] = dict(sorted({**schemas, **bodies["$defs"]}.items()))
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key. Not needed where authentication is off.",
        }
    }
    for path, operations in found["paths"].items():
        for operation in operations.values():
            _finish(operation, secured=path.startswith("/v1"))
    return found


def _finish(operation: dict[str, Any], *, secured: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    bodies = [operation.get("requestBody", {}), *responses.values()]
    for content in (content for body in bodies for content in body.get("content", {}).values()):
        if isinstance(content.get("example"), str):
            content["example"] = json.loads(content["example"])
    responses["default"] = {
        "description": "A problem: `code` says which.",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if secured:
        operation["security"] = [{"key": []}]
