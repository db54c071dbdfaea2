"""Variance-Based Pruning of MLP blocks in graphs.

Unlike `vbp`, which keeps as many neurons in every layer, it ranks neurons over all blocks, as the paper
does.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

VBP_VIT = recipes.register(
    channel_recipe(
        "vbp-vit",
        "Variance-Based Pruning of graphs",
        "Removes hidden neurons of MLP blocks (vision transformers, mixers, ConvNeXt) whose output varies "
        "least, over all blocks, and puts their mean into the next bias. Needs images, no labels, no "
        "training.",
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
