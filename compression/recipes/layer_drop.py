"""Dropping a run of layers."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.layers import layer_recipe

LAYER_DROP = recipes.register(
    layer_recipe(
        "layer-drop",
        "Layer dropping",
        "Removes the run of layers that turns the hidden states least. Faster everywhere.",
        Paper(
            "The Unreasonable Ineffectiveness of the Deeper Layers",
            "Gromov, Tirumala, Shapourian, Glorioso, Roberts",
            "ICLR 2025",
            "2403.17887",
        ),
        criterion="angular",
        selection="run",
    )
)
