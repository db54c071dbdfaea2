"""The gateway: `create_app(settings)`. Imports no torch, and nothing that its start does not need."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from service import api, openapi, problems
from service.auth import Doorkeeper
from service.blobs import open_blobs
from service.broker import bell
from service.db import Database
from service.health.service import Readiness
from service.idempotency import InFlight, Turns
from service.jobs.sse import Pace
from service.local import LocalOnly
from service.settings import Settings
from service.sweeper import Sweeper
from service.telemetry import Metrics, Telemetry
from service.version import VERSION


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    database = Database(settings.database_url, pool_size=settings.database_pool)
    blobs = await run_in_threadpool(open_blobs, settings)
    app.state.database, app.state.blobs = database, blobs
    app.state.doorkeeper = Doorkeeper(database)
    app.state.readiness = Readiness(settings, database, blobs)
    sweeper = Sweeper(database, blobs, bell(settings.broker_url), settings)
    sweeper.start()
    # Importing the broker's client takes a while: done now, aside, the first job need not wait for it.
    threading.Thread(target=bell(settings.broker_url).ping, name="broker-client", daemon=True).start()
    try:
        yield
    finally:
        await run_in_threadpool(sweeper.stop)
        database.dispose()


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application for `settings` (those of the environment when left out)."""
    app = FastAPI(
        title="Secateur",
        version=VERSION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    app.state.settings = settings or Settings()
    app.state.metrics = Metrics()
    app.state.in_flight = InFlight()
    app.state.turns = Turns()
    app.state.pace = Pace()
    api.install(app)
    problems.install(app)
    openapi.install(app)
    app.state.query_names = api.query_names(app)
    app.state.methods_at = api.methods_at(app)
    if app.state.settings.auth == "off":
        app.add_middleware(LocalOnly)
    app.add_middleware(Telemetry, metrics=app.state.metrics, routes=api.route_templates(app))
    return app
