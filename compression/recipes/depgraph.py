"""Group sparsity over what hangs together, then the weakest groups."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

DEPGRAPH = recipes.register(
    channel_recipe(
        "depgraph",
        "DepGraph",
        "Trains a graph with a penalty on all that hangs together in a unit, up to 16 times as much for weak "
        "units, and removes those that got weakest. Needs images; a thousand steps and more, and recovery.",
        Paper(
            "DepGraph: Towards Any Structural Pruning",
            "Fang, Ma, Song, Mi, Wang",
            "CVPR 2023",
            "2301.12900",
        ),
        criterion="group-l2",
        schedule="group-lasso",
        steps=1000,
    )
)
