"""VBP: Variance-Based Pruning.

Neurons alone, ranked within a layer: the paper ranks them over all layers, which gives every layer another
width.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

VBP = recipes.register(
    structure_recipe(
        "vbp",
        "Variance-Based Pruning",
        "Removes the neurons whose output varies least and puts their mean into the next bias.",
        Paper(
            "Variance-Based Pruning for Accelerating and Compressing Trained Networks",
            "Berisha, Mehnert, Condurache",
            "ICCV 2025",
            "2507.12988",
        ),
        granularities=("neuron",),
        criterion="activation-variance",
        update=("bias-compensation",),
    )
)
