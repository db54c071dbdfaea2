"""EvoPress."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

EVOPRESS = recipes.register(
    weight_recipe(
        "evopress",
        "EvoPress",
        "Evolutionary search for the sparsity of each layer, then SparseGPT. Slow; for high sparsities.",
        Paper(
            "EvoPress: Accurate Dynamic Model Compression via Evolutionary Search",
            "Sieberling, Kuznedelev, Kurtic, Alistarh",
            "ICML 2025",
            "2410.14649",
        ),
        granularities=("unstructured", "block"),
        criterion="wanda",
        update=("sparsegpt",),
        allocation="evolution",
    )
)
