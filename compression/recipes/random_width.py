"""Random neurons and heads."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.structures import structure_recipe

RANDOM_WIDTH = recipes.register(
    structure_recipe(
        "random-width",
        "Random structures",
        "Removes random neurons and heads: the baseline that every other recipe must beat.",
        None,
        criterion="random",
    )
)
