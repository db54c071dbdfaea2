"""FLAP, with the same width in all layers.

The paper standardises scores within a layer and compares them over all layers and both kinds, which gives
every layer another width; here every layer keeps as many, so that the result has a stock config. It adds a
bias to weights that have none; here the mean goes where the model has a bias.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

FLAP = recipes.register(
    structure_recipe(
        "flap",
        "FLAP",
        "Removes the neurons and heads whose contribution varies least; their mean goes into the bias.",
        Paper(
            "Fluctuation-based Adaptive Structured Pruning for Large Language Models",
            "An, Zhao, Yu, Tang, Wang",
            "AAAI 2024",
            "2312.11983",
        ),
        criterion="fluctuation",
        update=("bias-compensation",),
    )
)
