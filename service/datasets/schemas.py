"""Bodies and answers of /v1/datasets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from service.bodies import RequestBody
from service.schemas import Answer, FileRead, Json, List


class DatasetCreate(RequestBody):
    """A dataset from a completed upload of one file."""

    name: str = Field(description="1 to 200 printable characters.")
    upload: str = Field(
        description="Id of a completed upload that holds one file: .jsonl or .txt, or images as .parquet, "
        ".npz, .zip or .tar."
    )


class DatasetRead(Answer):
    """A dataset: what admission found in it."""

    id: str
    name: str
    format: str
    kind: Literal["text", "labelled", "pairs", "messages", "image"]
    rows: int = Field(description="Documents or images.")
    bytes: int
    facts: Json
    files: list[FileRead]
    created_at: str


class DatasetSummary(Answer):
    """A dataset, as lists show it."""

    id: str
    name: str
    format: str
    kind: Literal["text", "labelled", "pairs", "messages", "image"]
    rows: int
    bytes: int
    created_at: str


class DatasetList(List):
    """A page of datasets, newest first."""

    data: list[DatasetSummary]
