"""Ranks: a weight becomes the product of two thin ones."""

from __future__ import annotations

from compression.granularity import granularities


@granularities.register
class Rank:
    """Directions of a weight go; what is left is stored as two factors."""

    name = "rank"
    summary = (
        "Directions of weights, each of which becomes the product of two thin ones. Smaller and faster; "
        "loaded with the code in the artifact."
    )
    pattern = "^rank$"
