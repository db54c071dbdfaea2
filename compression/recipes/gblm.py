"""GBLM."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

GBLM = recipes.register(
    weight_recipe(
        "gblm",
        "GBLM",
        "Wanda plus weight times gradient. One backward pass over some calibration sequences.",
        Paper(
            "Beyond Size: How Gradients Shape Pruning Decisions in Large Language Models",
            "Das, Sun, Ma, Shen",
            "2023",
            "2311.04902",
        ),
        criterion="gblm",
        comparison="row",
    )
)
