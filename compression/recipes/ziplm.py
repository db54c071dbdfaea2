"""ZipLM's choice of units and its update, with the same width in all layers.

The paper finds the width of each layer by measured times; here all layers keep as many, so that the result
has a stock config.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

ZIPLM = recipes.register(
    structure_recipe(
        "ziplm",
        "ZipLM, one shot",
        "Removes neurons and heads one by one, each time the one that the layer's output misses least once "
        "the rest has adapted; then least squares.",
        Paper(
            "ZipLM: Inference-Aware Structured Pruning of Language Models",
            "Kurtic, Frantar, Alistarh",
            "NeurIPS 2023",
            "2302.04089",
        ),
        criterion="obs",
        update=("least-squares",),
        sequential=True,
    )
)
