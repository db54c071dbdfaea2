"""Channels by the Fisher information of a factor.

The paper divides by memory or multiply-accumulates and prunes step by step while it trains; here all units
go at once, by the loss alone.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

GROUP_FISHER = recipes.register(
    channel_recipe(
        "group-fisher",
        "Group Fisher pruning",
        "Removes channels of a graph with the least Fisher information, half the mean squared derivative "
        "of a sample's loss by a factor of the channel. Needs images; with labels the loss is the cross "
        "entropy.",
        Paper(
            "Group Fisher Pruning for Practical Network Compression",
            "Liu, Zhang, Kuang, Zhou, Xue, Wang, Chen, Yang, Liao, Zhang",
            "ICML 2021",
            "2108.00708",
        ),
        criterion="group-fisher",
        normalise="none",
    )
)
