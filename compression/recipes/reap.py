"""REAP."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

REAP = recipes.register(
    structure_recipe(
        "reap",
        "REAP",
        "Removes the experts that add least to the layer's output where they are used.",
        Paper(
            "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression",
            "Lasby, Lazarevich, Sinnadurai, Lie, Ioannou, Thangarasa",
            "ICLR 2026",
            "2510.13999",
        ),
        granularities=("expert",),
        criterion="expert-output",
    )
)
