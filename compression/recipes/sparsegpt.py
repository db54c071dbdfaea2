"""SparseGPT."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

SPARSEGPT = recipes.register(
    weight_recipe(
        "sparsegpt",
        "SparseGPT",
        "Removes weights column by column and lets the rest make up for them. Better than Wanda from 60% on.",
        Paper(
            "SparseGPT: Massive Language Models Can be Accurately Pruned in One-Shot",
            "Frantar, Alistarh",
            "ICML 2023",
            "2301.00774",
        ),
        criterion="wanda",
        update=("sparsegpt",),
    )
)
