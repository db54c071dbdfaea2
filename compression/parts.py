"""What all parts of a specification are made of. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Text = Annotated[str, Field(strict=True, min_length=1, max_length=256)]
Whole = Annotated[int, Field(strict=True)]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Part(BaseModel):
    """Base of all parts of a specification: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def fault(code: str, message: str) -> PydanticCustomError:
    """An error that a validator raises, with the code and the message that the user gets."""
    # The message goes in by its context because pydantic would read braces in a template.
    return PydanticCustomError(code, "{message}", {"message": message})
