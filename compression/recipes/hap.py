"""Channels by the trace of the Hessian."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

HAP = recipes.register(
    channel_recipe(
        "hap",
        "Hessian-aware pruning",
        "Removes channels of a graph with the least product of Hessian trace and squared weights. Slow.",
        Paper(
            "Hessian-Aware Pruning and Optimal Neural Implant",
            "Yu, Yao, Gholami, Dong, Kim, Mahoney, Keutzer",
            "WACV 2022",
            "2101.08940",
        ),
        criterion="hap",
    )
)
