"""Channels by layer-wise relevance."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

LRP = recipes.register(
    channel_recipe(
        "lrp",
        "Relevance",
        "Removes channels of a graph that get the least relevance for the outputs; through attention by "
        "AttnLRP.",
        Paper(
            "Pruning by Explaining: A Novel Criterion for Deep Neural Network Pruning",
            "Yeom, Seegerer, Lapuschkin, Binder, Wiedemann, Mueller, Samek",
            "Pattern Recognition 2021",
            "1912.08881",
        ),
        criterion="lrp",
    )
)
