"""LAMP."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

LAMP = recipes.register(
    weight_recipe(
        "lamp",
        "LAMP",
        "One threshold over magnitudes that every weight has normalised for itself. Needs no data. Made for "
        "networks that are retrained: without, it was weaker than magnitude on a language model.",
        Paper(
            "Layer-Adaptive Sparsity for the Magnitude-based Pruning",
            "Lee, Park, Mo, Ahn, Shin",
            "ICLR 2021",
            "2010.07611",
        ),
        granularities=("unstructured", "block"),
        criterion="magnitude",
        allocation="lamp",
    )
)
