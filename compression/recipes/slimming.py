"""Network slimming, by the scales that a network was trained with."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

SLIMMING = recipes.register(
    channel_recipe(
        "slimming",
        "Network slimming",
        "Removes channels of a graph whose batch normalisation scales them least; others stay.",
        Paper(
            "Learning Efficient Convolutional Networks through Network Slimming",
            "Liu, Li, Shen, Huang, Yan, Zhang",
            "ICCV 2017",
            "1708.06519",
        ),
        criterion="bn-scale",
    )
)
