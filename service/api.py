"""Assembly of the interface: which routers there are, and what their routes have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import iter_route_contexts

from service.artifacts.endpoints import router as artifacts
from service.auth import authenticated
from service.bodies import known_parameters
from service.datasets.endpoints import router as datasets
from service.health.endpoints import router as health
from service.jobs.endpoints import router as jobs
from service.jobs.report import router as reports
from service.keys.endpoints import router as keys
from service.models.endpoints import router as models
from service.plans.endpoints import router as plans
from service.recipes.endpoints import router as recipes
from service.ui.endpoints import router as ui
from service.uploads.endpoints import router as uploads


def install(app: FastAPI) -> None:
    """Give `app` all routes. Everything under /v1 needs a caller; nothing takes unknown query parameters."""
    versioned = APIRouter(prefix="/v1", dependencies=[Depends(authenticated), Depends(known_parameters)])
    for router in (models, uploads, datasets, jobs, reports, artifacts, recipes, plans, keys):
        versioned.include_router(router)
    app.include_router(versioned)
    for router in (health, ui):
        app.include_router(router, dependencies=[Depends(known_parameters)])


def query_names(app: FastAPI) -> dict[Any, frozenset[str]]:
    """Endpoint function -> the query parameters that its route takes."""

    def names(dependant: Any) -> set[str]:
        own = {str(parameter.alias) for parameter in dependant.query_params}
        return own.union(*(names(child) for child in dependant.dependencies))

    routes = iter_route_contexts(app.routes)
    return {
        route.endpoint: frozenset(names(route.dependant)) for route in routes if hasattr(route, "dependant")
    }


def route_templates(app: FastAPI) -> dict[Any, str]:
    """Endpoint function -> path template, for the labels of metrics."""
    return {route.endpoint: str(route.path) for route in iter_route_contexts(app.routes) if route.endpoint}


def methods_at(app: FastAPI) -> Callable[[str], list[str]]:
    """A function from a path to the methods that some route there takes."""
    routes = [route for route in iter_route_contexts(app.routes) if getattr(route, "path_regex", None)]

    def methods(path: str) -> list[str]:
        return sorted(
            {method for route in routes if route.path_regex.match(path) for method in route.methods or ()}
        )

    return methods
