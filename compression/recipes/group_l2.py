"""Group magnitude of channels by squares."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

GROUP_L2 = recipes.register(
    channel_recipe(
        "group-l2",
        "Group magnitude (L2)",
        "Removes channels of a graph with the smallest weights, by squares, wherever they lie.",
        Paper("DepGraph: Towards Any Structural Pruning", "Fang et al.", "CVPR 2023", "2301.12900"),
        criterion="group-l2",
    )
)
