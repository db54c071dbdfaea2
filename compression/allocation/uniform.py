"""Uniform: the same sparsity everywhere."""

from __future__ import annotations

from collections.abc import Mapping

from compression.allocation import allocations
from compression.allocation.base import ScoreStream


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


def uniform_counts(sizes: Mapping[str, int], remove_total: int) -> dict[str, int]:
    """Shares of `remove_total` in proportion to `sizes`, each within one of it, their sum exact."""
    total = sum(sizes.values())
    counts: dict[str, int] = {}
    seen = given = 0
    for site, size in sizes.items():
        seen += size
        upto = (2 * seen * remove_total + total) // (2 * total)
        counts[site] = upto - given
        given = upto
    return counts
