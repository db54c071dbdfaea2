"""Random pruning."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Recipe, WeightOptions

RANDOM = recipes.register(
    Recipe(
        name="random",
        title="Random",
        summary="Removes weights at random. The floor that every other recipe has to beat.",
        paper=None,
        needs=frozenset(),
        families=("llama", "bert"),
        granularities=("unstructured", "n:m"),
        targets=("sparsity",),
        options=WeightOptions,
        axes={"criterion": "random", "update": "none", "schedule": "one-shot"},
    )
)
