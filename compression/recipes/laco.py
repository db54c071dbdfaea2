"""LaCo: layers collapse into earlier ones, as long as the last hidden states stay alike.

The paper goes from the last layer to the first, merges as many as `collapse_layers` into the layer before
them wherever the similarity to the dense model stays above a threshold, and ends with what size comes out.
Here a target is met exactly: each round takes the merge with the greatest similarity, wherever it is, and the
last round merges as many layers as are left to go. The paper's least interval between merges is left out.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.layers import layer_recipe

LACO = recipes.register(
    layer_recipe(
        "laco",
        "LaCo",
        "Merges runs of layers into the layer before them, each time the run after which the last hidden "
        "states are most like the dense model's. Weak on few layers: of six, two merged ruined a model that "
        "dropping them spared (perplexity 2,921 against 112).",
        Paper(
            "LaCo: Large Language Model Pruning via Layer Collapse",
            "Yang, Cao, Zhao",
            "Findings of EMNLP 2024",
            "2402.11187",
        ),
        criterion="similarity",
        selection="collapse",
        update="merge",
    )
)
