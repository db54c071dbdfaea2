"""Random channels."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.channels import channel_recipe

RANDOM_CHANNELS = recipes.register(
    channel_recipe(
        "random-channels",
        "Random channels",
        "Removes random channels of a graph: the baseline that every other recipe must beat.",
        None,
        criterion="random",
    )
)
