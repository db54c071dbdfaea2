"""ASVD: weights become products of two, cut where columns of large inputs lose least.

The paper searches for ranks by the perplexity that each weight costs; here `allocation` gives them.
"""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.ranks import rank_recipe

ASVD = recipes.register(
    rank_recipe(
        "asvd",
        "ASVD",
        "Replaces weights by products of two thin ones, columns counting by the size of their inputs. Needs "
        'output.layout "packaged".',
        Paper(
            "ASVD: Activation-aware Singular Value Decomposition for Compressing Large Language Models",
            "Yuan, Shang, Song, Wu, Yan, Sun",
            "2023",
            "2312.05821",
        ),
        criterion="activation-scale",
    )
)
