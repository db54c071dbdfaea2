"""x"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

GROUP_LAMP = recipes.register(
    channel_recipe(
        "group-lamp",
        "LAMP of groups",
        "x",
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
