"""FLAP's adaptive structure: scores compared over the model after they were standardised in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.allocation.structures import structure_allocations
from compression.allocation.units import Keep, UnitEvidence, cheapest

if TYPE_CHECKING:
    from compression.anatomy.structures import Group


@structure_allocations.register
class Standardized:
    """(s - mean) / standard deviation of each group's scores s are compared over all groups (An et al. 2023,
    equation 6). A step of several units counts as their mean."""

    name = "standardized"
    summary = "Scores, standardised within each layer and kind, are compared over all of them."
    paper = "2312.11983"
    needs = frozenset({"unit.scores"})

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`."""
        ordered = {}
        for group in evidence.groups:
            scores = evidence.scores(group)
            spread = float(scores.std(correction=0)) or 1.0
            ordered[group.name] = ((scores - scores.mean()) / spread).sort().values

        def price(group: Group, before: int, after: int) -> float:
            return float(ordered[group.name][group.count - before : group.count - after].mean())

        return cheapest(evidence, budget, price)
