"""Magnitude pruning."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

MAGNITUDE = recipes.register(
    weight_recipe(
        "magnitude",
        "Magnitude",
        "Removes the smallest weights. Needs no data; weaker than Wanda on language models.",
        Paper(
            "Learning both Weights and Connections for Efficient Neural Networks",
            "Han, Pool, Tran, Dally",
            "NeurIPS 2015",
            "1506.02626",
        ),
        criterion="magnitude",
    )
)
