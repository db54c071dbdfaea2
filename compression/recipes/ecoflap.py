"""ECoFLaP."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

ECOFLAP = recipes.register(
    weight_recipe(
        "ecoflap",
        "ECoFLaP",
        "Layers the loss is more sensitive to keep more, by forward passes alone; Wanda inside each layer.",
        Paper(
            "ECoFLaP: Efficient Coarse-to-Fine Layer-Wise Pruning for Vision-Language Models",
            "Sung, Yoon, Bansal",
            "ICLR 2024",
            "2310.02998",
        ),
        granularities=("unstructured", "block"),
        criterion="wanda",
        comparison="row",
        allocation="ecoflap",
    )
)
