"""Channels by the second-order expansion of the loss, layers together."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

OBA = recipes.register(
    channel_recipe(
        "oba",
        "Optimal Brain Apoptosis",
        "Removes channels of a graph with the least share of the loss's second-order expansion, with exact "
        "Hessian-vector products, so that layers interact. Needs labels, slow. Made for networks that are "
        "retrained: without, it was no better than group-l2 on a small network.",
        Paper(
            "Optimal Brain Apoptosis",
            "Sun, Fang, Wang, Jiang, Kong, Hu, Fang, Xu",
            "ICLR 2025",
            "2502.17941",
        ),
        criterion="oba",
    )
)
