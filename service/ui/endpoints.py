"""/, /docs and /openapi.json. FastAPI's own documentation page loads scripts from another host; ours loads
nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TypeVar

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from compression.errors import DatasetInvalid, ModelRejected
from service import problems
from service.errors import ServiceError
from service.recipes import service as recipes
from service.ui import pages

router = APIRouter(include_in_schema=False)

Kind = TypeVar("Kind")

_HEADERS = {"Content-Security-Policy": pages.POLICY, "Cache-Control": "no-cache"}


@router.get("/")
def start(request: Request) -> Response:
    """What this is and where to go."""
    base = str(request.base_url).rstrip("/")
    return HTMLResponse(pages.landing(base, recipes.every()), headers=_HEADERS)


@router.get("/openapi.json")
def openapi(request: Request) -> Response:
    """The interface for machines."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
def docs(request: Request) -> Response:
    """The interface for people."""
    return HTMLResponse(pages.documentation(request.app.openapi(), sorted(set(kinds()))), headers=_HEADERS)


def kinds() -> Iterator[tuple[str, int, str, str]]:
    """Every kind of problem: code, status, title and what its class says of it."""
    for error in _family(ServiceError):
        if error.code not in {"lease_lost", "illegal_transition"}:
            yield error.code, error.status, error.title, _first_line(error)
    for refusal in (*_family(ModelRejected), *_family(DatasetInvalid)):
        # What only jobs find out about graphs is the error of a job, not an answer.
        if refusal.__module__.startswith("compression.graphs"):
            continue
        yield refusal.code, 422, problems.title_of(refusal), _first_line(refusal)


def _family(kind: type[Kind]) -> Iterator[type[Kind]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _family(child)


def _first_line(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").split("\n", 1)[0]
