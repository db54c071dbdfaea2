"""Sparse training of no more than what will go."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.base import Paper
from compression.recipes.channels import channel_recipe

MASK_SPARSITY = recipes.register(
    channel_recipe(
        "mask-sparsity",
        "MaskSparsity",
        "Picks channels of a graph, trains with an L1 penalty on their scales in batch normalisations (or on "
        "the norms of what makes them) alone, and removes them; what is left of them, a constant, goes into "
        "the biases of their readers. Needs images; best where scales were exported.",
        Paper(
            "Pruning-aware Sparse Regularization for Network Pruning",
            "Jiang, Zhao, Zhao, An, Tang, Wang",
            "arXiv 2022",
            "2201.06776",
        ),
        criterion="group-l2",
        update="bias",
        schedule="mask-sparsity",
    )
)
