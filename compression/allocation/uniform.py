"""Uniform: the same sparsity everywhere."""

from __future__ import annotations

from compression.allocation import allocations
from compression.allocation.base import Evidence, check_room
from compression.anatomy.budget import uniform_counts


@allocations.register
class Uniform:
    """Every site loses the same fraction, to within one unit of it."""

    name = "uniform"
    summary = "The same sparsity in every weight."
    paper = None
    needs = frozenset[str]()

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """Each site gets its share of `remove_total`, rounded so that running sums are exact; where that
        breaks a bound, one unit moves to another site.
        """
        check_room(evidence.bounds, remove_total)
        sizes = {site.name: evidence.units(site.name) for site in evidence.sites}
        return uniform_counts(sizes, remove_total, evidence.bounds)
