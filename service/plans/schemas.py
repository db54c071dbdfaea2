"""Answers of /v1/plans."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import FaultRead, Json


class PlanRead(BaseModel):
    """What a job would do, without running it."""

    model_config = ConfigDict(extra="allow")

    valid: bool
    errors: list[FaultRead] = Field(description="Why it is not valid; empty when it is.")
    specification: Json | None = Field(
        description="Resolved: every default is filled in. Null when not valid."
    )
