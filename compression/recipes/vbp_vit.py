"""Variance-Based Pruning of MLP blocks in graphs."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

VBP_VIT = recipes.register(
    channel_recipe(
        "vbp-vit",
        "Variance-Based Pruning of graphs",
        "Removes hidden neurons of MLP blocks.",
        Paper(
            "Variance-Based Pruning for Accelerating and Compressing Trained Networks",
            "Berisha, Mehnert, Condurache",
            "ICCV 2025",
            "2507.12988",
        ),
        criterion="variance",
        update="bias",
        units="mlp",
        normalise="none",
    )
)
