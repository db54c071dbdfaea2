"""SEAP: what a task does not excite goes, later layers losing more.

The paper gathers activations by task and may join several; here the calibration data are the task.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

SEAP = recipes.register(
    structure_recipe(
        "seap",
        "SEAP",
        "For one task: neurons and heads whose contribution varies least on the task's texts go, later "
        "layers losing more. Needs output.layout.",
        Paper(
            "SEAP: Training-free Sparse Expert Activation Pruning Unlock the Brainpower of Large Language "
            "Models",
            "Liang, Wang, Lai, Niu, and others",
            "2025",
            "2503.07605",
        ),
        criterion="fluctuation",
        allocation="depth",
    )
)
