"""x"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

GROUP_FISHER = recipes.register(
    channel_recipe(
        "group-fisher",
        "Group Fisher pruning",
        "x",
        Paper(
            "Group Fisher Pruning for Practical Network Compression",
            "Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang",
            "ICML 2021",
            "2108.00708",
        ),
        criterion="group-fisher",
        normalise="none",
    )
)
