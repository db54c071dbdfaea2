"""First-order Taylor criterion of channels."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

TAYLOR = recipes.register(
    channel_recipe(
        "taylor",
        "Taylor",
        "Removes channels of a graph with the smallest output times gradient of the loss. Needs labels.",
        Paper(
            "Importance Estimation for Neural Network Pruning",
            "Molchanov, Mallya, Tyree, Frosio, Kautz",
            "CVPR 2019",
            "1906.10771",
        ),
        criterion="taylor",
    )
)
