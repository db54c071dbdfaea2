"""What a recipe is, and the options that recipes of single weights share. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from compression.parameters import all_parameters


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


def options_model(
    name: str, fields: Mapping[str, tuple[Any, Any]], of: str, defaults: Mapping[str, Any]
) -> type[RecipeOptions]:
    """A model of these options (type and pydantic field by name) with a recipe's own defaults; `of` says what
    the recipes remove, for the message. ValueError for a default that is no option."""
    chosen: dict[str, Any] = dict(fields)
    for key, value in defaults.items():
        if key not in chosen:
            raise ValueError(f"{key!r} is no option of recipes of {of}")
        kind, info = chosen[key]
        default: Any = {"default": list(value) if isinstance(value, tuple) else value}
        chosen[key] = (kind, info.merge_field_infos(info, **default))
    model: type[RecipeOptions] = create_model(f"{name}Options", __base__=RecipeOptions, **chosen)
    return model


def parameter_fields(*registries: Any) -> dict[str, tuple[Any, Any]]:
    """The parameters of all entries of registries as fields of options."""
    fields: dict[str, tuple[Any, Any]] = {}
    for item in all_parameters(*registries).values():
        bounds: dict[str, Any] = dict(item.bounds)
        fields[item.name] = (item.kind, Field(item.default, description=item.description, **bounds))
    return fields


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
