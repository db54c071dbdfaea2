"""Uniform: the same sparsity everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from compression.allocation import allocations
from compression.allocation.base import ScoreStream
from compression.anatomy.budget import uniform_counts


@allocations.register
class Uniform:
    """Every site loses the same fraction, to within one weight."""

    name = "uniform"
    summary = "The same sparsity in every weight."
    needs_scores = False

    def allocate(
        self,
        sizes: Mapping[str, int],
        score_stream: ScoreStream | None,
        remove_total: int,
        minimum_density: float,
    ) -> dict[str, int]:
        """Each site gets its share of `remove_total`, rounded so that running sums are exact."""
        return uniform_counts(sizes, remove_total)
