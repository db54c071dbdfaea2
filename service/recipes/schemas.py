"""Answers of /v1/recipes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from service.schemas import Json


class RecipeRead(BaseModel):
    """What can be asked for under one name."""

    model_config = ConfigDict(extra="allow")

    name: str
    title: str
    summary: str
    paper: Json | None
    needs: list[str] = Field(description="What a job must bring, such as calibration.")
    families: list[str]
    granularities: list[str]
    targets: list[str]
    options: Json = Field(description="JSON schema of `options` in a job specification.")


class RecipeList(BaseModel):
    """All recipes."""

    data: list[RecipeRead]
    has_more: bool
    next: str | None
