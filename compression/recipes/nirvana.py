"""NIRVANA: first-order saliency of the predictions, heads and neurons balanced.

The paper also chooses its calibration data by the Kullback-Leibler divergence: option `calibration_sets`.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

NIRVANA = recipes.register(
    structure_recipe(
        "nirvana",
        "NIRVANA",
        "Removes the neurons and heads whose weights move the predictions least, wherever they are; neurons "
        "lose a larger part than heads. Needs output.layout.",
        Paper(
            "NIRVANA: Structured pruning reimagined for large language models compression",
            "Ai, Wei, Chen, He",
            "2025",
            "2509.14230",
        ),
        criterion="output-saliency",
        allocation="balanced",
    )
)
