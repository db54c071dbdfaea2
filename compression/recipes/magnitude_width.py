"""Group magnitude."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.structures import structure_recipe

MAGNITUDE_WIDTH = recipes.register(
    structure_recipe(
        "magnitude-width",
        "Magnitude of structures",
        "Removes the neurons, heads, experts or hidden channels with the smallest weights; needs no data.",
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
        criterion="magnitude",
    )
)
