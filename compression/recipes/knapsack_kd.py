"""Channels by a knapsack of Taylor scores."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

KNAPSACK_KD = recipes.register(
    channel_recipe(
        "knapsack-kd",
        "Knapsack pruning",
        "Removes those channels of a graph whose Taylor scores sum to least, each at the price of what it "
        "saves of the target: multiply-accumulates, or measured time for a target of latency. Needs "
        "labels. The paper then recovers by inner distillation, towards the inner features of the dense "
        "network: the recovery distillation with a feature_weight above 0.",
        Paper(
            "Knapsack Pruning with Inner Distillation",
            "Aflalo, Noy, Lin, Friedman, Zelnik",
            "arXiv 2020",
            "2002.08258",
        ),
        criterion="taylor",
        allocation="knapsack",
        normalise="none",
    )
)
