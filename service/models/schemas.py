"""Bodies and answers of /v1/models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.bodies import RequestBody
from service.schemas import Answer, FileRead, Json, List, Reason

Metadata = dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]]
"""Free labels of the user: at most 64."""


class ModelCreate(RequestBody):
    """A model from a completed upload."""

    name: str = Field(description="1 to 200 printable characters.")
    upload: str = Field(
        description="Id of a completed upload: a transformers folder's files, or an ONNX file and its data."
    )
    metadata: Metadata = Field(default={}, max_length=64, description="Kept with the model, never looked at.")


class ModelSummary(Answer):
    """A model, as lists show it."""

    id: str
    name: str
    status: Literal["importing", "ready", "rejected"]
    format: str | None
    architecture: str | None
    family: str | None
    task: str | None
    parameters: int | None
    bytes: int | None = Field(description="Size of the weight files.")
    dtype: str | None
    error: Reason | None
    metadata: Json
    created_at: str


class ModelRead(ModelSummary):
    """A model with its files and with what can be pruned in it."""

    files: list[FileRead]
    inspection: Json | None = Field(
        description="Weight sites, layers, granularities: what can be cut. Of ONNX: its ends and operators."
    )


class ModelList(List):
    """A page of models, newest first."""

    data: list[ModelSummary]
