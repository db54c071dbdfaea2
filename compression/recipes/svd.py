"""Plain truncation of singular values: what low rank does without data."""

from __future__ import annotations

from compression.recipes import recipes
from compression.recipes.ranks import rank_recipe

SVD = recipes.register(
    rank_recipe(
        "svd",
        "Truncated SVD",
        "Replaces weights by products of two thin ones, each the nearest to its weight. A baseline without "
        'data. Needs output.layout "packaged".',
        None,
        criterion="magnitude",
    )
)
