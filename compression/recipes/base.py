"""What a recipe is, and the options that recipes of single weights share. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class Paper:
    """Where a method comes from."""

    title: str
    authors: str
    venue: str
    arxiv: str | None = None

    def to_json(self) -> dict[str, str | None]:
        return {"title": self.title, "authors": self.authors, "venue": self.venue, "arxiv": self.arxiv}


class RecipeOptions(BaseModel):
    """Options of a recipe; every field has a default and a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class Recipe:
    """A named composition. `axes` maps an axis to the name of its entry; `options` is the model of its
    options.
    """

    name: str
    title: str
    summary: str
    paper: Paper | None
    needs: frozenset[str]
    families: tuple[str, ...]
    granularities: tuple[str, ...]
    targets: tuple[str, ...]
    options: type[RecipeOptions]
    axes: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The recipe as the catalogue lists it."""
        return {
            "name": self.name,
            "title": self.title,
            "summary": self.summary,
            "paper": self.paper.to_json() if self.paper else None,
            "needs": sorted(self.needs),
            "families": list(self.families),
            "granularities": list(self.granularities),
            "targets": list(self.targets),
            "options": options_schema(self.options),
            "defaults": dict(self.axes),
        }


def options_schema(options: type[BaseModel]) -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a model of options, without pydantic's generated titles."""
    schema = options.model_json_schema()
    properties = {
        name: {key: value for key, value in part.items() if key != "title"}
        for name, part in schema.get("properties", {}).items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
