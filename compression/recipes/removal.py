"""Channels by the loss without them, measured."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.channels import channel_recipe

REMOVAL = recipes.register(
    channel_recipe(
        "removal",
        "Loss of removal",
        "Removes channels of a graph without which the loss rises least, measured for every channel by "
        "itself: a forward pass of 128 images for each, so for small networks. Images need labels. Without "
        "training it was no better than group-l2 on a small network.",
        None,
        criterion="loss-of-removal",
    )
)
