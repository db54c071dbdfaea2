"""Query parameters and documentation that the routes share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query
from pydantic import BaseModel
from starlette.responses import JSONResponse

from service import ids
from service.errors import Fault, InvalidParameter, NotFound
from service.pagination import DEFAULT_LIMIT, MAXIMUM_LIMIT, Page


@dataclass(frozen=True)
class Paging:
    """Which page of a list is wanted."""

    limit: int
    after: str | None

    def behind(self, prefix: str) -> str | None:
        """`after`, once it is sure to be an id of this kind; raises InvalidParameter."""
        if self.after is not None and not ids.is_id(self.after, prefix):
            message = f"after is the `next` of an earlier page: an id that begins with {prefix}_"
            raise InvalidParameter(message, errors=[Fault("/query/after", message, "invalid_id")])
        return self.after


async def paging(
    limit: Annotated[int, Query(ge=1, le=MAXIMUM_LIMIT, description="How many at most.")] = DEFAULT_LIMIT,
    after: Annotated[str | None, Query(description="`next` of the page before.")] = None,
) -> Paging:
    """Dependency of every list."""
    return Paging(limit, after)


Pages = Annotated[Paging, Depends(paging)]


def page_response(page: Page[dict[str, Any]]) -> JSONResponse:
    """A page of a list on the wire."""
    return JSONResponse({"data": list(page.data), "has_more": page.has_more, "next": page.next})


def answers(
    schema: type[BaseModel], status: int = 200, *, example: Any = None, description: str | None = None
) -> dict[int | str, dict[str, Any]]:
    """The documentation of an answer: its schema and perhaps an example. Nothing is checked at run time."""
    entry: dict[str, Any] = {"model": schema}
    if description:
        entry["description"] = description
    if example is not None:
        # As text, because FastAPI takes nulls out of what it copies; service.openapi reads it back.
        entry["content"] = {"application/json": {"example": json.dumps(example)}}
    return {status: entry}


def takes(
    schema: str, *, example: Any = None, form: dict[str, Any] | None = None, required: bool = True
) -> dict[str, Any]:
    """The documentation of a body: the name of its schema, an example, its multipart form if any."""
    content: dict[str, Any] = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    if example is not None:
        content["application/json"]["example"] = json.dumps(example)
    if form is not None:
        content["multipart/form-data"] = {"schema": form}
    return {"requestBody": {"required": required, "content": content}}


def file_form(description: str) -> dict[str, Any]:
    """The documentation of a multipart body of a name and files."""
    return {
        "type": "object",
        "required": ["name", "files"],
        "properties": {
            "name": {"type": "string"},
            "files": {
                "type": "array",
                "items": {"type": "string", "contentMediaType": "application/octet-stream"},
                "description": description,
            },
        },
    }


def valid_id(value: str, prefix: str, missing: type[NotFound]) -> str:
    """`value`, when it has the form of an id of this kind; else it cannot exist: raises `missing`."""
    if not ids.is_id(value, prefix):
        raise missing(f"{value[:80]!r} is no id of this kind: those begin with {prefix}_")
    return value
