"""Random neurons, heads and experts."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.structures import structure_recipe

RANDOM_WIDTH = recipes.register(
    structure_recipe(
        "random-width",
        "Random structures",
        "Removes random neurons, heads or experts: the baseline that every other recipe must beat.",
        None,
        granularities=(
            "neuron+head",
            "neuron",
            "head",
            "expert",
            "neuron+head+hidden",
            "neuron+hidden",
            "hidden",
        ),
        criterion="random",
    )
)
