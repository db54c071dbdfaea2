"""From a target to what the units of all layers may cost together, where layers keep different numbers.
Exact, and no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compression.anatomy.inspection import Inspection
from compression.anatomy.structures import Structure
from compression.anatomy.widths import MULTIPLES, dense_figure, figure, goal, structures
from compression.specification import JobSpecification


@dataclass(frozen=True)
class UnitBudget:
    """`costs` are those of one unit by kind, in what the target counts (parameters for a sparsity); all units
    that stay cost at most `total`, of `whole`. `steps` are the numbers of units of one layer that may stay by
    kind, ascending, all of them last. Where a unit has no cost of its own (times), `curves` say by kind what
    0, 1, ... all units of a layer cost, and `costs` are means."""

    costs: dict[str, int]
    steps: dict[str, list[int]]
    total: int
    whole: int
    least: int
    curves: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def spent(self, kind: str, kept: int) -> int:
        """What so many units of one layer cost."""
        curve = self.curves.get(kind)
        return kept * self.costs[kind] if curve is None else curve[kept]

    @property
    def share(self) -> float:
        """The share of all units that every layer keeps, if all keep the same: as much as is affordable."""
        if not self.curves:
            return self.total / self.whole
        low, high = 0.0, 1.0
        layers = self.whole / sum(curve[-1] for curve in self.curves.values())
        for _ in range(50):
            middle = (low + high) / 2
            spent = sum(curve[round(middle * (len(curve) - 1))] for curve in self.curves.values())
            low, high = (middle, high) if layers * spent <= self.total else (low, middle)
        return low

    @property
    def reachable(self) -> bool:
        """Whether something must go, and as few units as may stay fit."""
        return self.least <= self.total < self.whole


def unit_budget(specification: JobSpecification, inspection: Inspection) -> UnitBudget:
    """What the units may cost, and in which numbers they stay."""
    found, layers = structures(specification, inspection), inspection.layers
    everything: dict[str, int] = {one.kind: one.count for one in found}
    full = figure(specification, inspection, everything)
    costs: dict[str, int] = {}
    for one in found:
        less = {**everything, one.kind: one.count - 1}
        costs[one.kind] = (full - figure(specification, inspection, less)) // layers
    steps: dict[str, list[int]] = {one.kind: possible(one, specification) for one in found}
    whole = layers * sum(one.count * costs[one.kind] for one in found)
    wanted = goal(specification, inspection)
    # What is counted besides units, and what dense files hold that will not be written, stays as it is.
    rest = full - whole
    if specification.target.kind == "bytes" and dense_figure(specification, inspection) != full:
        wanted = min(wanted, full)
    least = layers * sum(steps[one.kind][0] * costs[one.kind] for one in found)
    return UnitBudget(costs, steps, int(wanted - rest), whole, least)


def possible(one: Structure, specification: JobSpecification) -> list[int]:
    """The numbers of a kind's units that one layer may keep."""
    multiple = int(specification.options.get(MULTIPLES[one.kind], 1))
    parts = specification.options.get("remove_parts", "no")
    fewer = [] if parts == "only" else list(range(multiple, one.count, multiple))
    return [*([] if parts == "no" else [0]), *fewer, one.count]
