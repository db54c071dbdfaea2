"""Schemas that several resources share: problem documents, files, progress of lists."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Base of everything the service answers: for the documentation and the tests, not at run time."""

    model_config = ConfigDict(extra="forbid")


class FaultRead(Answer):
    """One thing wrong with the input."""

    pointer: str = Field(
        description="JSON pointer (RFC 6901) into the body, or the place of a parameter or file."
    )
    message: str
    code: str


class Problem(Answer):
    """An error (RFC 9457, `application/problem+json`)."""

    type: str = Field(description="Where the kind of problem is described.")
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable name of the kind of problem.")
    request_id: str = Field(description="Also in the X-Request-Id header, and in the log of the service.")
    errors: list[FaultRead] | None = Field(
        default=None, description="The single faults, where there are several."
    )


class FileRead(Answer):
    """A stored file."""

    path: str
    bytes: int
    sha256: str = Field(description="Of the content, in hexadecimal.")


class Reason(Answer):
    """Why something failed or was refused."""

    code: str
    message: str


class List(Answer):
    """A page of a list. Pass `next` as `after` to get the page behind it."""

    has_more: bool
    next: str | None


Json = dict[str, Any]
"""Any JSON object."""
