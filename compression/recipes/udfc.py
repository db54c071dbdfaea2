"""x"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

UDFC = recipes.register(
    channel_recipe(
        "udfc",
        "UDFC",
        "x",
        Paper(
            "Unified Data-Free Compression: Pruning and Quantization without Fine-Tuning",
            "Bai, Chen, Shen, Qian, Liu",
            "ICCV 2023",
            "2308.07209",
        ),
        criterion="group-l2",
        update="combination",
    )
)
