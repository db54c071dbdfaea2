"""Masks under which channels keep learning and may return."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

SMCP = recipes.register(
    channel_recipe(
        "smcp",
        "SMCP",
        "Trains a graph under masks that grow to the target; masked channels keep learning and return where "
        "weight times gradient says so. Needs images. The option criterion means nothing to it.",
        Paper(
            "Soft Masking for Cost-Constrained Channel Pruning",
            "Humble, Shen, Albericio Latorre, Darve, Alvarez",
            "ECCV 2022",
            "2211.02206",
        ),
        schedule="soft-masks",
    )
)
