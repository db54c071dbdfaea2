"""RIA."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

RIA = recipes.register(
    weight_recipe(
        "ria",
        "RIA",
        "Wanda with magnitudes relative to their row and column, so that no input or output is cut off.",
        Paper(
            "Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models",
            "Zhang, Bai, Lin, Zhao, Hou, Cannistraci",
            "ICLR 2024",
            "2402.15017",
        ),
        criterion="ria",
        comparison="row",
    )
)
