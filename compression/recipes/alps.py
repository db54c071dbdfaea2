"""ALPS."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

ALPS = recipes.register(
    weight_recipe(
        "alps",
        "ALPS",
        "Optimises mask and weights of each layer together by ADMM, then the weights by conjugate gradients.",
        Paper(
            "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models",
            "Meng, Behdin, Wang, Mazumder",
            "NeurIPS 2024",
            "2406.07831",
        ),
        criterion="wanda",
        update=("sparsegpt", "alps"),
    )
)
