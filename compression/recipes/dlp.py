"""DLP."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

DLP = recipes.register(
    weight_recipe(
        "dlp",
        "DLP",
        "Layers with a smaller median score keep more; Wanda inside each layer.",
        Paper(
            "DLP: Dynamic Layerwise Pruning in Large Language Models",
            "Chen et al.",
            "ICML 2025",
            "2505.23807",
        ),
        granularities=("unstructured", "block"),
        criterion="wanda",
        comparison="row",
        allocation="dlp",
    )
)
