"""Groups that become exactly zero in training."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

OTO = recipes.register(
    channel_recipe(
        "oto",
        "Only Train Once",
        "Picks channels of a graph and trains with half-space projections (HSPG) until what makes them is "
        "exactly zero, so that removing them changes little. Needs images, and steps enough to get there.",
        Paper(
            "Only Train Once: A One-Shot Neural Network Training And Pruning Framework",
            "Chen, Ji, Ding, Fang, Wang, Zhu, Liang, Shi, Yi, Tu",
            "NeurIPS 2021",
            "2107.07467",
        ),
        criterion="group-l2",
        schedule="oto",
    )
)
