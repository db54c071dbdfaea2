"""What a runner says to its supervisor, one JSON object a line.

The runner handles data of strangers, so its lines are checked like a request: sizes, types, and paths that
stay inside the work folder. Numbers that JSON does not have (NaN, infinities) become null.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

LINE_BYTES: Final = 1 << 20
"""Longest line of a runner in bytes; what is longer is dropped."""

Stage = Literal[
    "load", "inspect", "baseline", "calibrate", "prune", "recover", "evaluate", "export", "verify"
]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path:
        raise ValueError("a path inside the work folder is expected")
    return path


RelativePath = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_inside)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class StageBegun(_Line):
    """A stage of the pipeline has begun."""

    type: Literal["stage"]
    stage: Stage


class Progressed(_Line):
    """``done`` of ``total`` steps of the stage are finished."""

    type: Literal["progress"]
    done: int = Field(ge=0)
    total: int = Field(ge=0)


class Logged(_Line):
    """A line for people."""

    type: Literal["log"]
    message: str = Field(max_length=4096)


class Measured(_Line):
    """A figure measured on the way."""

    type: Literal["metric"]
    name: str = Field(max_length=128)
    value: FiniteFloat | None


class CheckpointSaved(_Line):
    """Files of a finished step, durable in the work folder."""

    type: Literal["checkpoint"]
    name: str = Field(max_length=128)
    files: list[RelativePath] = Field(max_length=64)
    data: dict[str, Any] = {}


class Finished(_Line):
    """The artifact and its report lie in the work folder."""

    type: Literal["result"]
    artifact: RelativePath
    report: RelativePath
    report_html: RelativePath
    summary: dict[str, Any]


class Failed(_Line):
    """The engine refused or failed; ``message`` is for the user."""

    type: Literal["error"]
    code: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    message: str = Field(max_length=4096)


Message = StageBegun | Progressed | Logged | Measured | CheckpointSaved | Finished | Failed
_adapter: Final[TypeAdapter[Message]] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


class MessageInvalid(ValueError):
    """A line of a runner that is no message."""


def parse(line: bytes) -> Message:
    """The message in one line; raises `MessageInvalid`."""
    try:
        return _adapter.validate_python(json.loads(line, parse_constant=lambda name: None))
    except (ValidationError, ValueError, RecursionError) as error:
        raise MessageInvalid(type(error).__name__) from error
