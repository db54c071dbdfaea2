"""Group magnitude of channels by absolute values."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

GROUP_L1 = recipes.register(
    channel_recipe(
        "group-l1",
        "Group magnitude (L1)",
        "Removes channels of a graph with the smallest weights, by absolute values, wherever they lie.",
        Paper(
            "Pruning Filters for Efficient ConvNets",
            "Li, Kadav, Durdanovic, Samet, Graf",
            "ICLR 2017",
            "1608.08710",
        ),
        criterion="group-l1",
    )
)
