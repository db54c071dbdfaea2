"""x"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

NVIT = recipes.register(
    channel_recipe(
        "nvit",
        "NViT",
        "x",
        Paper(
            "Global Vision Transformer Pruning with Hessian-Aware Saliency",
            "Yang, Yin, Shen, Molchanov, Li, Kautz",
            "CVPR 2023",
            "2110.04869",
        ),
        criterion="hessian-aware-per-mac",
        normalise="none",
    )
)
