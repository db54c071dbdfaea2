"""Distortion curves."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

DISTORTION_DP = recipes.register(
    weight_recipe(
        "distortion-dp",
        "Distortion curves",
        "Measures what each layer costs at each sparsity, finds the best combination, then SparseGPT.",
        Paper(
            "SPDY: Accurate Pruning with Speedup Guarantees",
            "Frantar, Alistarh",
            "ICML 2022",
            "2201.13096",
        ),
        granularities=("unstructured", "block"),
        criterion="wanda",
        update=("sparsegpt",),
        allocation="distortion-dp",
    )
)
