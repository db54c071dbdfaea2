"""SliceGPT with one rotation for all layers, or one for every norm.

The paper turns the stream before every norm into the principal directions of what that norm gives and keeps
the product of two neighbouring rotations on each skip connection: `rotation` "per-layer", which no stock
class has, so it is written with packaged code. By default all norms share one rotation, that of their inputs
together, so that the result has a stock config.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.structures import structure_recipe

SLICEGPT = recipes.register(
    structure_recipe(
        "slicegpt",
        "SliceGPT",
        "Turns the residual stream into its principal directions and removes the last of them.",
        Paper(
            "SliceGPT: Compress Large Language Models by Deleting Rows and Columns",
            "Ashkboos, Croci, Gennari do Nascimento, Hoefler, Hensman",
            "ICLR 2024",
            "2401.15024",
        ),
        granularities=("hidden",),
        criterion="activation-energy",
        rotation="shared",
    )
)
