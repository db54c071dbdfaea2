"""ShortGPT: the layers that turn the hidden states least, wherever they are."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.layers import layer_recipe

SHORTGPT = recipes.register(
    layer_recipe(
        "shortgpt",
        "ShortGPT",
        "Removes the layers that each turn the hidden states least; one pass over the calibration data.",
        Paper(
            "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
            "Men, Xu, Zhang, Yuan, Wang, Lin, Lu, Han, Chen",
            "2024",
            "2403.03853",
        ),
        criterion="block-influence",
        selection="separate",
    )
)
