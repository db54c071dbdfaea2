"""Options and recipes of whole layers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, create_model

from compression.anatomy.families import DECODERS, ENCODERS
from compression.criteria.layers import layer_criteria
from compression.recipes.base import Paper, Recipe, RecipeOptions
from compression.recipes.weights import data_needs
from compression.updates.layers import layer_updates


class LayerOptions(RecipeOptions):
    """Options of recipes that remove whole layers."""

    criterion: Literal[tuple(layer_criteria.names())] = Field(  # type: ignore[valid-type]
        "angular", description="What it costs to be without layers."
    )
    selection: Literal["run", "separate", "greedy", "collapse"] = Field(
        "run",
        description="Consecutive layers, each run judged as a whole; the cheapest layers, each judged alone; "
        "one by one, each judged together with those that went before; or run by run, each of "
        "collapse_layers.",
    )
    collapse_layers: int = Field(
        3, ge=1, le=4096, description="Selection collapse: so many consecutive layers go in a round."
    )
    update: Literal[tuple(layer_updates.names())] = Field(  # type: ignore[valid-type]
        "none",
        description="What happens to the layers that stay. Loss, divergence and similarity judge the model "
        "as it is then.",
    )
    layer_sequences: int = Field(
        32,
        ge=1,
        le=65536,
        description="Loss, divergence, similarity: calibration sequences that every choice is judged by.",
    )
    keep_first: int = Field(
        1,
        ge=0,
        le=4096,
        description="So many of the first layers are never dropped, and nothing is merged into them.",
    )
    keep_last: int = Field(1, ge=0, le=4096, description="So many of the last layers are never dropped.")


def layer_recipe(
    name: str, title: str, summary: str, paper: Paper, criterion: str, selection: str, **defaults: Any
) -> Recipe:
    """A recipe of whole layers with its own defaults."""
    given = {"criterion": criterion, "selection": selection, **defaults}
    fields: dict[str, Any] = {}
    for key, value in given.items():
        info = LayerOptions.model_fields[key]
        fields[key] = (info.annotation, info.merge_field_infos(info, default=value))
    title_case = "".join(part.title() for part in name.split("-"))
    return Recipe(
        name=name,
        title=title,
        summary=summary,
        paper=paper,
        needs=frozenset(data_needs(layer_criteria[criterion].needs)),
        families=(*DECODERS, *ENCODERS),
        granularities=("layer",),
        targets=("sparsity", "parameters", "macs", "bytes", "latency", "layers"),
        options=create_model(f"{title_case}Options", __base__=LayerOptions, **fields),
        axes={
            "criterion": criterion,
            "update": str(given.get("update", "none")),
            "schedule": "one-shot",
        },
    )
