"""SLEB: layers go one by one, each time the one without which the loss is lowest."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.layers import layer_recipe

SLEB = recipes.register(
    layer_recipe(
        "sleb",
        "SLEB",
        "Removes layers one by one, each time the one without which the loss is lowest. The slowest and the "
        "best of those that drop layers.",
        Paper(
            "SLEB: Streamlining LLMs through Redundancy Verification and Elimination of Transformer Blocks",
            "Song, Oh, Kim, Kim, Kim, Kim",
            "ICML 2024",
            "2402.09025",
        ),
        criterion="loss",
        selection="greedy",
    )
)
