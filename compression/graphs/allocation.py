"""How many units each group gives, so that a graph keeps so much of its costs.

- `local`: every group gives the same share of its units, give or take one;
- `global`: the units with the lowest scores of all groups go;
- `knapsack`: the units with the lowest scores for what they cost go. Costs are products of the widths of
  several groups, so that what a unit costs depends on what else goes: scores are divided by the Lagrangian's
  derivative of the cost at the widths found so far, until widths repeat. The choice with the least sum of
  scores is kept.

In the end whatever still fits the budget comes back, the highest scores first. A group always keeps a least
share, at least one unit, and, if asked for, a multiple of some number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compression.errors import CompressionError, TargetUnreachable
from compression.graphs.costs import CostModel
from compression.graphs.criteria import Scores
from compression.graphs.dependencies import Anatomy
from compression.graphs.removal import Kept, removed_labels

Chosen = dict[str, list[int]]
"""By the name of a group, the units that go, ascending."""
SHARE_KEPT = 0.1
"""The least share of a group that stays, and at least one unit."""
ROUNDS = 12
"""Of the knapsack: how often widths are found anew at most."""
NORMALISE: dict[str, Callable[[Scores], float]] = {
    "mean": lambda scores: float(np.abs(scores).mean()),
    "max": lambda scores: float(np.abs(scores).max()),
    "none": lambda scores: 1.0,
}
"""What the scores of a group are divided by before groups are compared."""
MEASURES = ("macs", "parameters")
ALLOCATIONS = ("global", "knapsack", "local")


class ScoresInvalid(CompressionError):
    """Scores that are not finite; the message names the group and the unit."""

    code = "scores_invalid"


@dataclass(frozen=True)
class Budget:
    """At most the share `ratio` of `measure` (macs or parameters) stays. `share_kept`: of every group;
    `multiple`: what stays of a group is a multiple of it, unless the group stays whole."""

    ratio: float
    measure: str = "macs"
    share_kept: float = SHARE_KEPT
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError("the ratio lies above 0 and at most at 1")
        if self.measure not in MEASURES or self.multiple < 1:
            raise ValueError(f"the measure is one of {', '.join(MEASURES)}, the multiple at least 1")


def allocate(
    anatomy: Anatomy,
    scores: Mapping[str, Scores],
    budget: Budget,
    allocation: str = "global",
    normalise: str = "mean",
) -> Chosen:
    """The units that go so that the budget is met and no more than needed. Groups without scores stay whole.

    `normalise` (mean, max, none; of sizes of scores) matters to "global" and "knapsack". TargetUnreachable
    names what can be reached; ScoresInvalid for scores that are not finite.
    """
    if allocation not in ALLOCATIONS or normalise not in NORMALISE:
        raise ValueError(
            f"allocations are {', '.join(ALLOCATIONS)}; scores are divided by {', '.join(NORMALISE)}"
        )
    check_scores(scores)
    divisor = NORMALISE[normalise]
    tiny = np.finfo(np.float64).tiny
    plan = Plan(anatomy, {name: one / max(divisor(one), tiny) for name, one in scores.items()}, budget)
    if allocation == "local":
        even = plan.least(plan.share, max(plan.limits.values(), default=0) * 4)
        return plan.filled(even, once=True)
    if allocation == "global":
        order = plan.ranked({name: 1.0 for name in scores})
        return plan.filled(plan.least(lambda count: plan.taken(order[:count]), len(order)))
    return plan.knapsack()


def check_scores(scores: Mapping[str, Scores]) -> None:
    """ScoresInvalid names a unit whose score is not finite."""
    for name, one in scores.items():
        if not np.isfinite(one).all():
            unit = int(np.flatnonzero(~np.isfinite(one))[0])
            raise ScoresInvalid(f"the score of unit {unit} of the group {name!r} is {one[unit]}")


class Plan:
    """Units of groups in the order in which they go, within what must stay."""

    def __init__(self, anatomy: Anatomy, scores: Mapping[str, Scores], budget: Budget) -> None:
        self.anatomy, self.scores, self.budget = anatomy, dict(scores), budget
        self.model = CostModel(anatomy)
        self.allowed = budget.ratio * self.cost({})
        self.orders = {name: np.argsort(one, kind="stable") for name, one in scores.items()}
        self.limits = {
            name: max(len(one) - max(math.ceil(budget.share_kept * len(one)), 1), 0)
            for name, one in scores.items()
        }
        self._axes = whole_axes(anatomy)

    def cost(self, chosen: Chosen) -> int:
        """What the budget measures, of the graph without these units."""
        found = self.model.without(chosen)
        return found.macs if self.budget.measure == "macs" else found.parameters

    def least(self, choose: Callable[[int], Chosen], most: int) -> Chosen:
        """What is chosen in the fewest steps that meet the budget. TargetUnreachable if `most` do not."""
        reached = self.cost(choose(most))
        if reached > self.allowed:
            dense = max(self.cost({}), 1)
            what = "multiply-accumulates" if self.budget.measure == "macs" else "parameters"
            raise TargetUnreachable(
                f"at least {reached / dense:.3f} of the {what} stay, more than {self.budget.ratio:.3f}: "
                "ask for that much or more"
            )
        low, high = -1, most  # `high` meets the target, `low` does not
        while high - low > 1:
            middle = (low + high) // 2
            if self.cost(choose(middle)) <= self.allowed:
                high = middle
            else:
                low = middle
        return choose(high)

    def ranked(self, prices: Mapping[str, float]) -> list[tuple[str, int]]:
        """Units that may go, by score over the price of a unit of their group; each with the name."""
        entries = []
        for place, (name, one) in enumerate(self.scores.items()):
            for rank, unit in enumerate(self.orders[name][: self.limits[name]].tolist()):
                entries.append((float(one[unit]) / prices[name], place, rank, name, unit))
        return [(name, unit) for _, _, _, name, unit in sorted(entries)]

    def taken(self, units: list[tuple[str, int]]) -> Chosen:
        """These units, less those that must stay."""
        counts: dict[str, int] = {}
        for name, _ in units:
            counts[name] = counts.get(name, 0) + 1
        return self.by_count(counts)

    def share(self, step: int) -> Chosen:
        """The same share of every group."""
        most = max(max(self.limits.values(), default=0) * 4, 1)
        return self.by_count({name: limit * step // most for name, limit in self.limits.items()})

    def by_count(self, counts: Mapping[str, int]) -> Chosen:
        """So many units of each group, fewer where what stays would be no multiple."""
        chosen: Chosen = {}
        for name, count in counts.items():
            units = len(self.scores[name])
            kept = -(-(units - count) // self.budget.multiple) * self.budget.multiple
            if kept < units:
                chosen[name] = self.orders[name][: units - kept].tolist()
        return self._with_something_left(chosen)

    def knapsack(self) -> Chosen:
        """Prices at the widths found so far, until a choice repeats; the best of them, filled up."""
        found: Chosen = {}
        seen: dict[float, Chosen] = {}
        for _ in range(ROUNDS):
            order = self.ranked(self._prices(found))
            found = self.least(lambda count, order=order: self.taken(order[:count]), len(order))  # type: ignore[misc]
            lost = self._lost(found)
            if lost in seen:
                break
            seen[lost] = found
        return self.filled(seen[min(seen)])

    def _prices(self, chosen: Chosen) -> dict[str, float]:
        """By group, what a unit costs beside what stays: the difference to one step more, or less."""
        now = self.cost(chosen)
        prices = {}
        step = self.budget.multiple
        for name, order in self.orders.items():
            gone = len(chosen.get(name, []))
            other = gone + step if gone + step <= self.limits[name] else max(gone - step, 0)
            moved = dict(chosen) | {name: order[:other].tolist()}
            prices[name] = max(abs(now - self.cost(moved)) / max(abs(other - gone), 1), 1e-9)
        return prices

    def _lost(self, chosen: Chosen) -> float:
        return math.fsum(float(self.scores[name][unit]) for name, units in chosen.items() for unit in units)

    def filled(self, chosen: Chosen, *, once: bool = False) -> Chosen:
        """Units back, those of the highest scores first, as long as the budget is met; `once`: of every
        group at most one step."""
        found = {}
        for name, units in chosen.items():
            gone = set(units)
            found[name] = [unit for unit in self.orders[name].tolist() if unit in gone]
        step = self.budget.multiple
        open_ = {name for name, units in found.items() if len(units) >= step}
        while open_:
            name = max(sorted(open_), key=lambda one: float(self.scores[one][found[one][-1]]))
            less = found | {name: found[name][:-step]}
            fits = self.cost(less) <= self.allowed
            found = less if fits else found
            if once or not fits or len(found[name]) < step:
                open_.discard(name)
        return {name: sorted(units) for name, units in found.items() if units}

    def _with_something_left(self, chosen: Chosen) -> Chosen:
        """Bring back the best unit of an axis that would lose all its elements (a part of a split, say)."""
        gone = removed_labels(self.anatomy, chosen)
        by_label = {
            int(self.anatomy.group(name).labels[unit]): (name, unit)
            for name, units in chosen.items()
            for unit in units
        }
        for labels in self._axes:
            if gone[labels].all():
                best = max(
                    (by_label[label] for label in labels.tolist()),
                    key=lambda one: float(self.scores[one[0]][one[1]]),
                )
                chosen[best[0]].remove(best[1])
                gone[self.anatomy.group(best[0]).labels[best[1]]] = False
        return {name: sorted(units) for name, units in chosen.items() if units}


def whole_axes(anatomy: Anatomy) -> list[NDArray[np.int64]]:
    """The sets of labels that some axis consists of, of axes that units alone make up; each set once."""
    units: Kept = np.zeros(anatomy.label_count, dtype=np.bool_)
    for group in anatomy.groups:
        units[group.labels] = True
    found: dict[bytes, NDArray[np.int64]] = {}
    for axes in anatomy.axes.values():
        for ids in axes:
            if ids is not None and ids.size and units[ids].all():
                labels = np.unique(ids)
                found[labels.tobytes()] = labels
    return list(found.values())
