"""Channels nearest to all others of their layer."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

FPGM = recipes.register(
    channel_recipe(
        "fpgm",
        "Geometric median",
        "Removes the filters of a graph that lie nearest to all others of their layer, which can stand in.",
        Paper(
            "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
            "He, Liu, Wang, Hu, Yang",
            "CVPR 2019",
            "1811.00250",
        ),
        criterion="fpgm",
    )
)
