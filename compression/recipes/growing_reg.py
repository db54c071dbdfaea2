"""What will go is pressed harder and harder."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

GROWING_REG = recipes.register(
    channel_recipe(
        "growing-reg",
        "Growing regularisation",
        "Picks channels of a graph by their weights, trains with an L2 penalty on them that grows from step "
        "to step, and removes them when little of them is left. Needs images.",
        Paper(
            "Neural Pruning via Growing Regularization",
            "Wang, Qin, Zhang, Fu",
            "ICLR 2021",
            "2012.09243",
        ),
        criterion="group-l1",
        schedule="growing-reg",
    )
)
