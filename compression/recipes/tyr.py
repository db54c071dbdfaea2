"""Tyr: OBS inside the layers, evolution over how much each keeps.

The paper searches coarse to fine with ever smaller steps over a database of layers that were cut with what
earlier layers lose in expectation; here one search over nine levels, cut on the dense model's activations.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

TYR = recipes.register(
    structure_recipe(
        "tyr",
        "Tyr, one search",
        "Cuts every layer to several widths by OBS, then searches the combination nearest to the dense "
        "model. Slow. Needs output.layout.",
        Paper(
            "Tyr-the-Pruner: Structural Pruning LLMs via Global Sparsity Distribution Optimization",
            "Li, Xu, Li, Liu, and others",
            "NeurIPS 2025",
            "2503.09657",
        ),
        criterion="obs",
        update=("least-squares",),
        allocation="evolution",
        sequential=True,
    )
)
