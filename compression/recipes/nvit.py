"""NViT: one saliency for all kinds of units.

The paper subtracts from the saliency what a table of latencies says that a unit saves; here it is divided
by the multiply-accumulates that go with the unit. The paper also cuts widths of queries, keys and values
beside heads and the width of the residual stream, which graphs keep where a norm reads it, and prunes step
by step while it trains; here all units go at once.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

NVIT = recipes.register(
    channel_recipe(
        "nvit",
        "NViT",
        "Removes units of a graph with the least squared sum of gradient times weight, over all weights "
        "that go with a unit, for the multiply-accumulates they save. Compares heads, hidden neurons and "
        "channels over the whole network. Needs labels; meant to be followed by training.",
        Paper(
            "Global Vision Transformer Pruning with Hessian-Aware Saliency",
            "Yang, Yin, Shen, Molchanov, Li, Kautz",
            "CVPR 2023",
            "2110.04869",
        ),
        criterion="hessian-aware-per-mac",
        normalise="none",
    )
)
