"""Minitron's pruning of width: neurons and heads. The hidden width, which it prunes too, stays."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

MINITRON_WIDTH = recipes.register(
    structure_recipe(
        "minitron-width",
        "Minitron (width)",
        "Removes the neurons and heads that give the smallest outputs; made for distillation afterwards.",
        Paper(
            "Compact Language Models via Pruning and Knowledge Distillation",
            "Muralidharan, Sreenivas, Joshi, Chochowski, Patwary, Shoeybi, Catanzaro, Kautz, Molchanov",
            "NeurIPS 2024",
            "2407.14679",
        ),
        criterion="activation-norm",
    )
)
