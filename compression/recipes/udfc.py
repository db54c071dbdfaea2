"""UDFC: removed channels as combinations of those that stay.

The pruning half of the paper; graphs are not quantised here. Which filters go is by their norm. Closer with
data, or with inputs made without: `obspa` with options.data synthetic.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

UDFC = recipes.register(
    channel_recipe(
        "udfc",
        "UDFC",
        "Removes channels of a graph and lets the readers take them over as linear combinations of "
        "channels that stay, by filters and BatchNorm statistics alone. Needs no data, no training.",
        Paper(
            "Unified Data-Free Compression: Pruning and Quantization without Fine-Tuning",
            "Bai, Chen, Shen, Qian, Liu",
            "ICCV 2023",
            "2308.07209",
        ),
        criterion="group-l2",
        allocation="uniform",
        update="combination",
    )
)
