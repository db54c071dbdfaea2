"""x"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

BETA_RANK = recipes.register(
    channel_recipe(
        "beta-rank",
        "Beta-Rank",
        "x",
        Paper(
            "Beta-Rank: A Robust Convolutional Filter Pruning Method For Imbalanced Medical Image Analysis",
            "Homayounfar, Koohi-Moghadam, Rawassizadeh, Vardhanabhuti",
            "arXiv 2023",
            "2304.07461",
        ),
        criterion="beta-rank",
    )
)
