"""Measured curves of every layer, and the combination of them that is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from compression.allocation.structures import structure_allocations
from compression.allocation.units import Keep, UnitEvidence, by_loss, check_budget, filled, least
from compression.parameters import parameter

RESOLUTION = 20_000


@structure_allocations.register
@dataclass(frozen=True)
class Knapsack:
    """Every group is cut to each of its levels alone, the divergence of the predictions is measured, and a
    dynamic programme finds the levels with the least sum within the budget (as in Kurtic et al. 2023, ZipLM,
    section 3.2, with the divergence in place of the layer's error; costs are what the target counts:
    parameters, multiply-accumulates, bytes, or as there the measured times of layers)."""

    name: ClassVar[str] = "knapsack"
    summary: ClassVar[str] = "Measures what each level of each group costs and finds the best combination."
    paper: ClassVar[str | None] = "2302.04089"
    needs: ClassVar[frozenset[str]] = frozenset({"unit.divergence", "unit.scores"})

    knapsack_sequences: int = parameter(
        16, "Knapsack: calibration sequences that levels are measured on.", ge=1, le=65536
    )

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`. The rest that levels leave is filled by the criterion's scores."""
        check_budget(evidence, budget)
        curves: list[list[float]] = []
        for number, group in enumerate(evidence.groups):
            rising = 0.0
            curve = []
            for level in reversed(evidence.levels(group)):
                if level < group.count:
                    found = evidence.divergence({group.name: level}, self.knapsack_sequences)
                    rising = max(rising, found)
                curve.append(rising)
            curves.append(curve[::-1])
            evidence.progress(number + 1, len(evidence.groups))
        levels = [list(evidence.levels(group)) for group in evidence.groups]
        costs = [
            [evidence.spent(group, level) for level in row]
            for group, row in zip(evidence.groups, levels, strict=True)
        ]
        chosen = best_levels(levels, costs, curves, budget)
        fewest = least(evidence)
        keep = {
            group.name: max(level, fewest[group.name])
            for group, level in zip(evidence.groups, chosen, strict=True)
        }
        return filled(evidence, keep, budget, by_loss(evidence))


def best_levels(
    levels: Sequence[Sequence[int]],
    costs: Sequence[Sequence[int]],
    curves: Sequence[Sequence[float]],
    budget: int,
) -> list[int]:
    """For each group the level, so that the sum of the curves is least and the cost is within the budget;
    `costs` are those of every level.

    Exact where costs are multiples of their highest sum / RESOLUTION; else each is rounded up to one, so the
    budget holds all the same. Falls back to the lowest levels where rounding leaves nothing.
    """
    whole = sum(row[-1] for row in costs)
    unit = max(1, whole // RESOLUTION)
    goal = budget // unit
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for numbers, prices, curve in zip(levels, costs, curves, strict=True):
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for spent, (lost, path) in best.items():
            for number, price, worse in zip(numbers, prices, curve, strict=True):
                reached = spent + -(-price // unit)
                known = following.get(reached)
                if reached <= goal and (known is None or lost + worse < known[0]):
                    following[reached] = (lost + worse, (*path, number))
        best = following
    if not best:
        return [numbers[0] for numbers in levels]
    return list(min(best.values(), key=lambda one: one[0])[1])
