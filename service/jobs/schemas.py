"""Answers of /v1/jobs. The body of a new job is `compression.specification.JobSpecification`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.bodies import RequestBody
from service.schemas import Answer, Json, List, Reason


class JobAction(RequestBody):
    """Nothing needs to be said."""


class ProgressRead(Answer):
    """How far the stage is."""

    done: int | None
    total: int | None
    fraction: float | None = Field(description="0 to 1.")
    eta_seconds: float | None


class ResultRead(Answer):
    """What a job that succeeded made."""

    summary: Json
    artifact: str | None = Field(description="Id of the artifact.")
    report: str = Field(description="Path of the report.")


class JobRead(Answer):
    """A job. The state changes queued -> running -> succeeded | failed | cancelled, and never again after
    that.
    """

    id: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    stage: str | None = Field(
        description="load, inspect, baseline, calibrate, prune, recover, evaluate, export or verify."
    )
    progress: ProgressRead | None
    attempt: int
    specification: Json = Field(description="Resolved: every default is filled in.")
    error: Reason | None
    result: ResultRead | None
    metadata: Json
    retry_of: str | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    cancel_requested_at: str | None


class JobList(List):
    """A page of jobs, newest first."""

    data: list[JobRead]


class EventRead(Answer):
    """Something that happened to a job."""

    sequence: int = Field(description="From 1, without gaps.")
    type: Literal["state", "stage", "progress", "log", "metric", "done"]
    data: Json
    at: str


class EventList(Answer):
    """A page of events, oldest first. Pass `next` as `after`."""

    data: list[EventRead]
    has_more: bool
    next: int | None
