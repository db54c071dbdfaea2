"""Magnitude pruning."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper, Recipe, WeightOptions

MAGNITUDE = recipes.register(
    Recipe(
        name="magnitude",
        title="Magnitude",
        summary="Removes the smallest weights. Needs no data; far weaker than Wanda on language models.",
        paper=Paper(
            "Learning both Weights and Connections for Efficient Neural Networks",
            "Han, Pool, Tran, Dally",
            "NeurIPS 2015",
            "1506.02626",
        ),
        needs=frozenset(),
        families=("llama", "bert"),
        granularities=("unstructured", "n:m"),
        targets=("sparsity",),
        options=WeightOptions,
        axes={"criterion": "magnitude", "update": "none", "schedule": "one-shot"},
    )
)
