"""The same share of every weight."""

from __future__ import annotations

from compression.allocation.ranks import rank_allocations
from compression.allocation.spectra import RankEvidence
from compression.anatomy.ranks import RankBudget, uniform_ranks


@rank_allocations.register
class UniformRanks:
    """Every weight stores the same share of its elements, to a step."""

    name = "uniform"
    summary = "Every weight stores the same share of its elements, rounded down to a rank."
    paper = None
    needs = frozenset[str]()

    def allocate(self, evidence: RankEvidence, budget: RankBudget) -> dict[str, int]:
        """See `RankAllocation`."""
        return uniform_ranks(budget)
