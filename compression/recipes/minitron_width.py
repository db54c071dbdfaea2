"""Minitron's pruning of width: neurons, heads and, where the granularity says so, hidden channels.

The paper searches among the widths that meet a budget by short retraining; here all kinds lose about the same
share.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

MINITRON_WIDTH = recipes.register(
    structure_recipe(
        "minitron-width",
        "Minitron (width)",
        "Removes neurons, heads and hidden channels that give the smallest outputs; made for distillation "
        "afterwards.",
        Paper(
            "Compact Language Models via Pruning and Knowledge Distillation",
            "Muralidharan, Sreenivas, Joshi, Chochowski, Patwary, Shoeybi, Catanzaro, Kautz, Molchanov",
            "NeurIPS 2024",
            "2407.14679",
        ),
        granularities=(
            "neuron+head",
            "neuron",
            "head",
            "neuron+head+hidden",
            "neuron+hidden",
            "hidden",
        ),
        criterion="activation-norm",
    )
)
