"""Random."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.weights import weight_recipe

RANDOM = recipes.register(
    weight_recipe(
        "random",
        "Random",
        "Removes weights at random. The floor that every other recipe has to beat.",
        None,
        criterion="random",
    )
)
