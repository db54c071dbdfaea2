"""Channels as long as no task gets worse than its floor."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

PAGCP = recipes.register(
    channel_recipe(
        "pagcp",
        "PAGCP",
        "Removes channels of a graph group by group, those of the smallest weights, as long as the loss of "
        "every output stays above its floor; floors fall until the target is met. Without labels the loss "
        "of an output is the distance to what the dense network gave. The paper trains between rounds; "
        "here the floors alone fall. Slow.",
        Paper(
            "Performance-aware Approximation of Global Channel Pruning for Multitask CNNs",
            "Ye, Zhang, Chen, Fan, Wang",
            "TPAMI 2023",
            "2303.11923",
        ),
        criterion="group-l1",
        allocation="floors",
    )
)
