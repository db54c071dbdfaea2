"""Every layer keeps as many: the only allocation whose result has a stock config."""

from __future__ import annotations

from compression.allocation.structures import structure_allocations
from compression.allocation.units import Keep, UnitEvidence, by_share


@structure_allocations.register
class Uniform:
    """The same share of every group. (Where it is chosen, the one width of all layers comes from arithmetic
    alone, in `anatomy.widths`.)"""

    name = "uniform"
    summary = "Every layer keeps as many units; the result has a stock config."
    paper = None
    needs = frozenset[str]()

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`."""
        return by_share(evidence, {group.name: 1.0 for group in evidence.groups}, budget)
