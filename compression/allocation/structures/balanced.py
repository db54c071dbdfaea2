"""NIRVANA: scores compared over all layers, heads and neurons each for themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compression.allocation.structures import structure_allocations
from compression.allocation.units import (
    Keep,
    Some,
    UnitEvidence,
    cheapest,
    check_budget,
    filled,
    least,
    saved,
    total,
)
from compression.parameters import parameter

if TYPE_CHECKING:
    from compression.anatomy.structures import Group


@structure_allocations.register
@dataclass(frozen=True)
class Balanced:
    """Neurons lose gamma times the part that heads lose; within each kind the units with the lowest scores
    go, whatever their layer (Ai et al. 2025, NIRVANA). With a and f the cost of all heads and of all neurons
    and g of what goes, heads lose g / (a + gamma f) of theirs and neurons gamma g / (a + gamma f). (The
    authors' code counts units: of a head, with its query heads, c_a, and of a neuron c_f, the ratio of their
    numbers is (a / f) (c_f / c_a) / gamma, which is the same.) What one kind cannot lose the other does;
    heads are rounded to their steps, neurons meet the target.
    """

    name: ClassVar[str] = "balanced"
    summary: ClassVar[str] = "Heads and neurons lose parts in a fixed ratio; in each, scores are compared."
    paper: ClassVar[str | None] = "2509.14230"
    needs: ClassVar[frozenset[str]] = frozenset({"unit.scores"})

    balanced_gamma: float = parameter(
        3.36,
        "Balanced: the part that neurons lose over the part that heads lose (the paper's code: 3.36 for "
        "Llama 3.1 8B, 3.0 for Llama 3.2 3B).",
        gt=0.0,
        le=1e6,
    )

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`."""
        check_budget(evidence, budget)
        ordered = {group.name: evidence.scores(group).sort().values for group in evidence.groups}

        def price(group: Group, before: int, after: int) -> float:
            return float(ordered[group.name][group.count - before : group.count - after].mean())

        heads = Some(evidence, [group for group in evidence.groups if group.kind == "head"])
        neurons = Some(evidence, [group for group in evidence.groups if group.kind != "head"])
        keep: Keep = {}
        if heads.groups:
            goal = self._head_goal(heads, neurons, budget)
            keep = cheapest(heads, max(int(goal), total(heads, least(heads))), price)
        left = budget - total(heads, keep)
        if neurons.groups:
            keep |= cheapest(neurons, max(left, total(neurons, least(neurons))), price)
        if total(evidence, keep) > budget:
            keep |= cheapest(heads, budget - total(neurons, keep), price)
        return filled(evidence, keep, budget, price)

    def _head_goal(self, heads: Some, neurons: Some, budget: int) -> float:
        """What the heads that stay should cost, and half a step more, to be rounded to the nearest."""
        attention, ffn = (
            total(part, {one.name: one.count for one in part.groups}) for part in (heads, neurons)
        )
        gone = attention + ffn - budget
        wanted = attention * gone / (attention + self.balanced_gamma * ffn)
        # No more neurons go than may.
        wanted = max(wanted, gone - (ffn - total(neurons, least(neurons))))
        first = heads.groups[0]
        *_, below, whole = [first.count, *heads.steps(first)]
        return attention - min(wanted, gone) + saved(heads, first, whole, below) / 2
