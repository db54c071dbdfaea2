"""Channels by the rank of their feature maps."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

HRANK = recipes.register(
    channel_recipe(
        "hrank",
        "HRank",
        "Removes channels of a graph whose feature maps have the lowest rank on average. Needs images.",
        Paper(
            "HRank: Filter Pruning using High-Rank Feature Map",
            "Lin, Ji, Wang, Zhang, Zhang, Tian, Shao",
            "CVPR 2020",
            "2002.10179",
        ),
        criterion="hrank",
    )
)
