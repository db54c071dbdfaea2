"""Gates that are trained while the weights are not."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

AUTOBOT = recipes.register(
    channel_recipe(
        "autobot",
        "AutoBot",
        "Trains a gate for every channel of a graph against loss and costs, with all weights frozen, and "
        "removes channels whose gates close. Needs images; finds how many go where. The option criterion "
        "means nothing to it.",
        Paper(
            "Automatic Neural Network Pruning that Efficiently Preserves the Model Accuracy",
            "Castells, Yeom",
            "arXiv 2021",
            "2111.09635",
        ),
        schedule="gates",
    )
)
