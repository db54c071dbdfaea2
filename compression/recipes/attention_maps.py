"""x"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

ATTENTION_MAPS = recipes.register(
    channel_recipe(
        "attention-maps",
        "Activation attention maps",
        "x",
        Paper(
            "Adaptive Activation-based Structured Pruning",
            "Zhao, Jain, Zhao",
            "arXiv 2022",
            "2201.10520",
        ),
        criterion="attention-l2",
    )
)
