"""Answers of the probes."""

from __future__ import annotations

from typing import Literal

from service.schemas import Answer


class Alive(Answer):
    """The process answers."""

    status: Literal["ok"]


class Check(Answer):
    """One thing the service needs."""

    status: Literal["ok", "degraded", "failed"]
    detail: str | None


class Ready(Answer):
    """Whether requests can be served. A broker that is away only delays jobs: `degraded`."""

    status: Literal["ok", "degraded"]
    checks: dict[str, Check]
    version: str
