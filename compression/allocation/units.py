"""What an allocation of units is, and the arithmetic that makes each of them exact.

A group is the units of one kind in one layer. Keeping n of a group's units costs what its kind says: n times
the cost of a unit (parameters, multiply-accumulates or bytes, as the target counts), or the measured time of
a layer that keeps n. More units always cost more; the sum over all groups must not exceed the budget.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from compression.criteria.units import best
from compression.errors import TargetUnreachable

if TYPE_CHECKING:
    from torch import Tensor

    from compression.anatomy.structures import Group

Keep = dict[str, int]
"""By the name of a group, how many of its units stay."""

Units = Mapping[str, "Tensor"]
"""By the name of a group, the units int64 that stay, ascending."""

UNIT_EVIDENCE = ("unit.scores", "unit.influence", "unit.divergence", "unit.loss")
"""What an allocation may ask for; see `UnitEvidence`."""


class Costs(Protocol):
    """Groups of units, what they cost, and in which numbers they may stay."""

    @property
    def groups(self) -> Sequence[Group]:
        """All groups, in the model's order."""
        ...

    def spent(self, group: Group, kept: int) -> int:
        """What it costs to keep so many units."""
        ...

    def steps(self, group: Group) -> Sequence[int]:
        """The numbers of units that may stay, ascending; all of them last."""
        ...


class UnitEvidence(Costs, Protocol):
    """What is known of the dense model."""

    def scores(self, group: Group) -> Tensor:
        """The criterion's scores: float64 [units]."""
        ...

    def losses(self, group: Group) -> Sequence[float]:
        """What the criterion says is lost when the n lowest units go, for n = 0 ... all; never falling."""
        ...

    def influence(self) -> Sequence[float]:
        """For each layer, 1 - the mean cosine between what enters and what leaves it."""
        ...

    def divergence(self, keep: Mapping[str, int], sequences: int) -> float:
        """Mean divergence of the predictions from the dense model's when these groups are cut to these
        numbers and others are whole; numbers must be among `levels`."""
        ...

    def levels(self, group: Group) -> Sequence[int]:
        """Some of the steps, evenly spread, for which cut layers are made; ascending, all units last."""
        ...

    def loss(self, kept: Units, sequences: int) -> float:
        """Mean loss without the units of these groups that are not kept, nothing else changed; others are
        whole. Infinite where the sub-model overflows. Known again after a kill."""
        ...

    @property
    def seed(self) -> int:
        """That of the job."""
        ...

    def progress(self, done: int, total: int) -> None: ...


class StructureAllocation(Protocol):
    """Gives each group its number of units."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str | None]
    needs: ClassVar[frozenset[str]]

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """Numbers among the steps of each group, whose cost is within the budget and as near to it as one
        more step anywhere allows. Raises TargetUnreachable."""
        ...


@runtime_checkable
class UnitSelection(StructureAllocation, Protocol):
    """An allocation that also says which units stay, in place of the criterion."""

    def select(self, evidence: UnitEvidence, budget: int) -> Units:
        """Of every group the units that stay, as many as `allocate` gives. Raises TargetUnreachable."""
        ...


@dataclass(frozen=True)
class Some:
    """Some of the groups of other costs."""

    costs: Costs
    groups: Sequence[Group]

    def spent(self, group: Group, kept: int) -> int:
        """What it costs to keep so many units."""
        return self.costs.spent(group, kept)

    def steps(self, group: Group) -> Sequence[int]:
        """The numbers of units that may stay."""
        return self.costs.steps(group)


def total(evidence: Costs, keep: Mapping[str, int]) -> int:
    """What it costs to keep so many."""
    return sum(evidence.spent(group, keep[group.name]) for group in evidence.groups)


def saved(evidence: Costs, group: Group, before: int, after: int) -> int:
    """What is saved when a group goes from so many units to fewer."""
    return evidence.spent(group, before) - evidence.spent(group, after)


def kept_by_score(evidence: UnitEvidence, keep: Mapping[str, int]) -> dict[str, Tensor]:
    """The units that stay when each group keeps so many of its best by the criterion; whole groups are left
    out."""
    less = [group for group in evidence.groups if keep[group.name] < group.count]
    return {group.name: best(evidence.scores(group), keep[group.name]) for group in less}


def least(evidence: Costs) -> Keep:
    """As few as may stay."""
    return {group.name: evidence.steps(group)[0] for group in evidence.groups}


def check_budget(evidence: Costs, budget: int) -> None:
    """Raises TargetUnreachable if even as few as may stay cost more."""
    fewest = total(evidence, least(evidence))
    if fewest > budget:
        whole = sum(evidence.spent(group, group.count) for group in evidence.groups)
        raise TargetUnreachable(
            f"at least {fewest / whole:.4f} of the cost of these units stays, but the target leaves "
            f"{budget / whole:.4f}: lower the target, or the multiples that widths are rounded to"
        )


Price = Callable[["Group", int, int], float]
"""What it costs in quality that of a group, from so many units, only so many stay."""


def cheapest(evidence: Costs, budget: int, price: Price) -> Keep:
    """From whole groups, takes the step with the lowest price, again and again, until the budget is met; then
    gives back steps that still fit, the dearest first. Raises TargetUnreachable."""
    check_budget(evidence, budget)
    keep = {group.name: group.count for group in evidence.groups}
    spent = total(evidence, keep)
    queue: list[tuple[float, int]] = []

    def offer(number: int) -> None:
        group = evidence.groups[number]
        below = [step for step in evidence.steps(group) if step < keep[group.name]]
        if below:
            heapq.heappush(queue, (price(group, keep[group.name], below[-1]), number))

    for number in range(len(evidence.groups)):
        offer(number)
    while spent > budget:
        _, number = heapq.heappop(queue)
        group = evidence.groups[number]
        step = [step for step in evidence.steps(group) if step < keep[group.name]][-1]
        spent -= saved(evidence, group, keep[group.name], step)
        keep[group.name] = step
        offer(number)
    return filled(evidence, keep, budget, price)


def filled(evidence: Costs, keep: Mapping[str, int], budget: int, price: Price) -> Keep:
    """Adds steps that fit into what is left of the budget, those without which the price is highest first."""
    found = dict(keep)
    left = budget - total(evidence, found)
    while True:
        fitting = []
        for number, group in enumerate(evidence.groups):
            above = next((step for step in evidence.steps(group) if step > found[group.name]), None)
            if above is not None and saved(evidence, group, above, found[group.name]) <= left:
                fitting.append((-price(group, above, found[group.name]), number, above))
        if not fitting:
            return found
        _, number, above = min(fitting)
        group = evidence.groups[number]
        left -= saved(evidence, group, above, found[group.name])
        found[group.name] = above


def by_loss(evidence: UnitEvidence) -> Price:
    """What the criterion says is lost by a step, for what the step saves."""

    def price(group: Group, before: int, after: int) -> float:
        losses = evidence.losses(group)
        lost = losses[group.count - after] - losses[group.count - before]
        return lost / saved(evidence, group, before, after)

    return price


def by_share(evidence: Costs, shares: Mapping[str, float], budget: int) -> Keep:
    """Groups keep `shares` of their units, all multiplied by the one factor that meets the budget (never more
    than all); rounded down to steps, the rest of the budget goes to those that are furthest below theirs.
    Raises TargetUnreachable."""
    check_budget(evidence, budget)

    def rounded(factor: float) -> Keep:
        keep = {}
        for group in evidence.groups:
            wanted = min(1.0, shares[group.name] * factor) * group.count
            steps = evidence.steps(group)
            keep[group.name] = max((step for step in steps if step <= wanted + 1e-9), default=steps[0])
        return keep

    low, high = 0.0, 1.0
    while total(evidence, rounded(high)) <= budget and high < 1e9:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if total(evidence, rounded(middle)) <= budget else (low, middle)
    keep = rounded(low)

    def price(group: Group, before: int, after: int) -> float:
        return min(1.0, shares[group.name] * low) - after / group.count

    return filled(evidence, keep, budget, price)
