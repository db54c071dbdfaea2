"""Scores compared over the whole model."""

from __future__ import annotations

from compression.allocation.structures import structure_allocations
from compression.allocation.units import Keep, UnitEvidence, by_loss, cheapest


@structure_allocations.register
class Global:
    """Units go where the criterion says that least is lost for what is saved, whatever their layer and
    kind."""

    name = "global"
    summary = "Scores, divided by what a unit costs, are compared over all layers and kinds."
    paper = None
    needs = frozenset({"unit.scores"})

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`."""
        return cheapest(evidence, budget, by_loss(evidence))
