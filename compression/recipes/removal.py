"""x"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.channels import channel_recipe

REMOVAL = recipes.register(
    channel_recipe(
        "removal",
        "Loss of removal",
        "x",
        None,
        criterion="loss-of-removal",
    )
)
