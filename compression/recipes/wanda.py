"""Wanda."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

WANDA = recipes.register(
    weight_recipe(
        "wanda",
        "Wanda",
        "Removes the weights with the smallest product of magnitude and input norm. Fast.",
        Paper(
            "A Simple and Effective Pruning Approach for Large Language Models",
            "Sun, Liu, Bair, Kolter",
            "ICLR 2024",
            "2306.11695",
        ),
        criterion="wanda",
        comparison="row",
    )
)
