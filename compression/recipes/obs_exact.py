"""Exact OBS."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.weights import weight_recipe

OBS_EXACT = recipes.register(
    weight_recipe(
        "obs-exact",
        "Exact OBS",
        "Removes weights one by one, the rest adapting exactly each time. For layers of up to 2,048 inputs.",
        Paper(
            "Optimal Brain Compression: A Framework for Accurate Post-Training Quantization and Pruning",
            "Frantar, Singh, Alistarh",
            "NeurIPS 2022",
            "2208.11580",
        ),
        granularities=("unstructured", "n:m"),
        criterion="wanda",
        update=("exact-obs",),
    )
)
