"""Bodies and answers of /v1/uploads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from service.bodies import RequestBody
from service.schemas import Answer, FileRead

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class UploadFile(RequestBody):
    """A file that will be sent in parts."""

    path: str = Field(
        description="Where it lies inside the model or dataset: relative, with forward slashes."
    )
    bytes: int = Field(ge=0)
    sha256: Sha256 | None = Field(default=None, description="Checked when the upload is completed.")


class UploadCreate(RequestBody):
    """What will be sent."""

    files: list[UploadFile] = Field(min_length=1, max_length=2000)
    part_bytes: int | None = Field(
        default=None,
        ge=1,
        description="Size of a part; the service raises it to keep a file under 10,000 parts.",
    )


class UploadComplete(RequestBody):
    """Nothing needs to be said."""


class PartRead(Answer):
    """A slice of a file. Send it with PUT, in any order, as often as needed."""

    number: int = Field(description="From 1, over all files of the upload.")
    path: str
    offset: int = Field(description="Of the first byte within the file.")
    bytes: int
    received: bool


class UploadRead(Answer):
    """An upload; parts that are not `received` are still to be sent."""

    id: str
    status: Literal["open", "completed", "expired", "aborted"]
    part_bytes: int
    parts: list[PartRead]
    files: list[FileRead] = Field(description="The stored files; empty until the upload is completed.")
    expires_at: str = Field(description="Moves on with every part received.")
    created_at: str
    completed_at: str | None


class PartReceived(Answer):
    """A part is stored."""

    number: int
    sha256: str
    bytes: int
