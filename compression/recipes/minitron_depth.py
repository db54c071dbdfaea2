"""Minitron, depth: the run of layers without which the loss is lowest.

The papers rank single layers by the perplexity without them, and settle for consecutive ones, chosen by how
well the model still does; here every run is judged by the loss on calibration data.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.layers import layer_recipe

MINITRON_DEPTH = recipes.register(
    layer_recipe(
        "minitron-depth",
        "Minitron, depth",
        "Removes the run of layers without which the loss is lowest. Best followed by distillation.",
        Paper(
            "LLM Pruning and Distillation in Practice: The Minitron Approach",
            "Sreenivas, Muralidharan, Joshi, Chochowski, and others",
            "2024",
            "2408.11796",
        ),
        criterion="loss",
        selection="run",
    )
)
