"""LAMP of the units of graphs."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

GROUP_LAMP = recipes.register(
    channel_recipe(
        "group-lamp",
        "LAMP of groups",
        "Removes channels of a graph by LAMP's score of their norm within the group, compared over groups "
        "as it is. Needs no data. Made for networks that are retrained: without, it was no better than "
        "group-l2 on a small network.",
        Paper(
            "Layer-Adaptive Sparsity for the Magnitude-based Pruning",
            "Lee, Park, Mo, Ahn, Shin",
            "ICLR 2021",
            "2010.07611",
        ),
        criterion="group-lamp",
        normalise="none",
    )
)
