"""Channels by their activation attention maps.

The paper's schedules, which prune and train until a goal breaks, are not part of it.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

ATTENTION_MAPS = recipes.register(
    channel_recipe(
        "attention-maps",
        "Activation attention maps",
        "Removes channels of a graph with the least mean squared activation (attention maps of power 2; "
        "power 1 is the criterion attention-l1). Needs images, no labels.",
        Paper(
            "Adaptive Activation-based Structured Pruning",
            "Zhao, Jain, Zhao",
            "arXiv 2022",
            "2201.10520",
        ),
        criterion="attention-l2",
    )
)
