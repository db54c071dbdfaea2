"""Request ids, logs and metrics: one ASGI layer around the application, and the /metrics page.

Job metrics are computed from the database when they are asked for, so any number of gateways and workers
tell the same story and no worker needs an exporter.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import ids, problems

log = structlog.get_logger("service.http")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._\-]{8,64}")
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300)


class Metrics:
    """The figures of one gateway process: requests by route, method and status, and their duration."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "secateur_http_requests",
            "Answered requests",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "secateur_http_request_seconds",
            "Time to the end of the answer",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.active = Gauge(
            "secateur_http_requests_active", "Requests being answered", registry=self.registry
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request; `route` is the template, so that ids make no new series."""
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(method, route).observe(seconds)

    def page(self, gauges: Mapping[str, tuple[str, str, Mapping[str, float]]]) -> bytes:
        """The metrics in Prometheus' text format.

        Args:
            gauges: figures of the whole installation, as name -> (help, label, value by label value).
        """
        text: bytes = generate_latest(self.registry)
        return text + generate_latest(_registry_of(gauges))


class _Figures(Collector):
    def __init__(self, gauges: Mapping[str, tuple[str, str, Mapping[str, float]]]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        for name, (help_text, label, values) in self._gauges.items():
            family = GaugeMetricFamily(name, help_text, labels=[label] if label else None)
            for value, figure in values.items():
                family.add_metric([value] if label else [], figure)
            yield family


def _registry_of(gauges: Mapping[str, tuple[str, str, Mapping[str, float]]]) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Figures(gauges))
    return registry


def _given_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode("ascii"))
    return None


class Telemetry:
    """ASGI layer: gives every request an id, measures it, logs it, and answers what nobody foresaw.

    A request id sent by the caller is kept when it is 8 to 64 letters, digits, dots, dashes or underscores.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, routes: Mapping[Any, str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given_id(scope) or ids.new_id(ids.REQUEST)
        scope.setdefault("state", {})["request_id"] = request_id
        status, started = 0, time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["X-Request-Id"] = request_id
                headers.setdefault("X-Content-Type-Options", "nosniff")
            await send(message)

        self._metrics.active.inc()
        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            problems.log_failure("unexpected_error", error, request_id=request_id, path=scope["path"])
            if status:
                # The answer has begun: cutting the connection is the only way left to say that it is not
                # whole.
                raise
            await problems.unexpected(Request(scope))(scope, receive, answer)
        finally:
            self._metrics.active.dec()
            self._finish(scope, request_id, status, time.perf_counter() - started)

    def _finish(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = self._routes.get(scope.get("endpoint"), "unmatched")
        self._metrics.observe(scope["method"], route, status, seconds)
        # Polling would drown everything else: reads that went well are logged at debug.
        quiet = status < 400 and scope["method"] in {"GET", "HEAD"}
        if quiet and not logging.getLogger("service").isEnabledFor(logging.DEBUG):
            return
        write = log.debug if quiet else log.info
        write(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(seconds, 4),
            request_id=request_id,
        )


def configure_logging(level: str) -> None:
    """One JSON line per event on standard error, for our own loggers and those of the libraries."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
