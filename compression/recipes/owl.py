"""OWL."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

OWL = recipes.register(
    weight_recipe(
        "owl",
        "OWL",
        "Layers with more outliers keep more; Wanda inside each layer.",
        Paper(
            "Outlier Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High "
            "Sparsity",
            "Yin, Wu, Zhang, Hsieh, Wang, Jia, Li, Jaiswal, Pechenizkiy, Liang, Bendersky, Wang, Liu",
            "ICML 2024",
            "2310.05175",
        ),
        granularities=("unstructured", "block"),
        criterion="wanda",
        comparison="row",
        allocation="owl",
    )
)
