"""Beta-Rank: how much filters change the data.

The score is that of the authors' code, where a filter's channels are ranked within their layer and the
share of every layer is given by hand; here groups are compared by scores over their mean.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

BETA_RANK = recipes.register(
    channel_recipe(
        "beta-rank",
        "Beta-Rank",
        "Removes channels whose filters change the data least: mean |w| times the growth of deviation in "
        "the filter. Made for imbalanced data, see options.class_weights, and for networks that are "
        "retrained: without, it was no better than group-l2 on a small network.",
        Paper(
            "Beta-Rank: A Robust Convolutional Filter Pruning Method For Imbalanced Medical Image Analysis",
            "Homayounfar, Koohi-Moghadam, Rawassizadeh, Vardhanabhuti",
            "arXiv 2023",
            "2304.07461",
        ),
        criterion="beta-rank",
    )
)
