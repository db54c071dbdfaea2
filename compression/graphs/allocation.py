"""How many units each group gives, so that a graph keeps so much of what it costs.

- `local`: every group gives the same share of its units, give or take one;
- `global`: the units with the lowest scores of all groups go;
- `knapsack`: the units with the lowest scores for what they cost go. Costs are products of the widths of
  several groups, so that what a unit costs depends on what else goes: scores are divided by the Lagrangian's
  derivative of the cost at the widths found so far, until widths repeat. From the best of these, numbers of
  units are found by `knapsack.least_lost` with each group's own curve of costs beside the widths of the
  others, anew at the widths found. The choice with the least sum of scores is kept.

What it costs is anything that can be told of a graph without some units (`Bound`): multiply-accumulates,
parameters, bytes, seconds. In the end whatever still fits comes back, the highest scores first. A group
always keeps a least share, at least one unit, and, if asked for, a multiple of some number.
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
from compression.graphs.dependencies import Anatomy, Group
from compression.graphs.knapsack import least_lost
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
MEASURES = {"macs": "multiply-accumulates", "parameters": "parameters"}
REFINED, TRIES, LEVELS, OPTIONS = 3, 6, 9, 64
"""Of the knapsack: how often curves are told anew, how often more is asked of one, and at how many numbers of
units a curve is told and a group may stop."""
ALLOCATIONS = ("global", "knapsack", "local")


class ScoresInvalid(CompressionError):
    """Scores that are not finite; the message names the group and the unit."""

    code = "scores_invalid"


class OutOfReach(TargetUnreachable):
    """Not met without any unit that may go; `least` is what then stays, `dense` what there is."""

    def __init__(self, message: str, least: float, dense: float) -> None:
        super().__init__(message)
        self.least, self.dense = least, dense


@dataclass(frozen=True)
class Bound:
    """At most `most` stays of what `of` tells of a graph without some units; `what` names it. `share_kept`:
    of every group at least; `multiple`: the channels that stay of a group are a multiple of it, unless all
    do."""

    of: Callable[[Chosen], float]
    most: float
    what: str
    share_kept: float = SHARE_KEPT
    multiple: int = 1


@dataclass(frozen=True)
class Budget:
    """At most the share `ratio` of `measure` (macs or parameters) stays; the rest as in `Bound`."""

    ratio: float
    measure: str = "macs"
    share_kept: float = SHARE_KEPT
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError("the ratio lies above 0 and at most at 1")
        if self.measure not in MEASURES or self.multiple < 1:
            raise ValueError(f"the measure is one of {', '.join(MEASURES)}, the multiple at least 1")

    def bound(self, anatomy: Anatomy) -> Bound:
        """The same as a bound on the costs of a graph."""
        model = CostModel(anatomy)

        def of(chosen: Chosen) -> float:
            found = model.without(chosen)
            return found.macs if self.measure == "macs" else found.parameters

        return Bound(of, self.ratio * of({}), MEASURES[self.measure], self.share_kept, self.multiple)


def allocate(
    anatomy: Anatomy,
    scores: Mapping[str, Scores],
    budget: Budget | Bound,
    allocation: str = "global",
    normalise: str = "mean",
) -> Chosen:
    """The units that go so that the budget is met and no more than needed. Groups without scores stay whole.

    `normalise` (mean, max, none; of sizes of scores) matters to "global" and "knapsack". OutOfReach
    names what can be reached; ScoresInvalid for scores that are not finite.
    """
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocations are {', '.join(ALLOCATIONS)}, not {allocation!r}")
    plan = Plan(anatomy, normalised(scores, normalise), budget)
    if allocation == "local":
        even = plan.least(plan.share, max(plan.limits.values(), default=0) * 4)
        return plan.filled(even, once=True)
    if allocation == "global":
        return plan.filled(plan.lowest({name: 1.0 for name in scores}))
    return plan.knapsack()


def normalised(scores: Mapping[str, Scores], normalise: str) -> dict[str, Scores]:
    """The scores of every group over their size; ScoresInvalid for scores that are not finite."""
    if normalise not in NORMALISE:
        raise ValueError(f"scores are divided by {', '.join(NORMALISE)}, not {normalise!r}")
    check_scores(scores)
    divisor, tiny = NORMALISE[normalise], np.finfo(np.float64).tiny
    return {name: one / max(divisor(one), tiny) for name, one in scores.items()}


def check_scores(scores: Mapping[str, Scores]) -> None:
    """ScoresInvalid names a unit whose score is not finite."""
    for name, one in scores.items():
        if not np.isfinite(one).all():
            unit = int(np.flatnonzero(~np.isfinite(one))[0])
            raise ScoresInvalid(f"the score of unit {unit} of the group {name!r} is {one[unit]}")


class Plan:
    """Units of groups in the order in which they go, within what must stay."""

    def __init__(self, anatomy: Anatomy, scores: Mapping[str, Scores], budget: Budget | Bound) -> None:
        self.anatomy, self.scores = anatomy, dict(scores)
        self.bound = budget.bound(anatomy) if isinstance(budget, Budget) else budget
        self.orders = {name: np.argsort(one, kind="stable") for name, one in scores.items()}
        self.steps = {name: _step(anatomy.group(name), self.bound.multiple) for name in scores}
        self.limits = {
            name: max(len(one) - max(math.ceil(self.bound.share_kept * len(one)), 1), 0)
            for name, one in scores.items()
        }
        self._axes = whole_axes(anatomy)

    def cost(self, chosen: Chosen) -> float:
        """What the bound is on, of the graph without these units."""
        return self.bound.of(chosen)

    def fits(self, chosen: Chosen) -> bool:
        """Whether the graph without these units is within the bound."""
        return self.cost(chosen) <= self.bound.most

    def least(self, choose: Callable[[int], Chosen], most: int) -> Chosen:
        """What is chosen in the fewest steps that are within the bound. OutOfReach if `most` are not."""
        if not self.fits(choose(most)):
            reached, dense = self.cost(choose(most)), max(self.cost({}), np.finfo(np.float64).tiny)
            raise OutOfReach(
                f"at least {reached / dense:.3f} of the {self.bound.what} stay, more than "
                f"{self.bound.most / dense:.3f}: ask for that much or more",
                reached,
                dense,
            )
        low, high = -1, most  # `high` is within the bound, `low` is not
        while high - low > 1:
            middle = (low + high) // 2
            if self.fits(choose(middle)):
                high = middle
            else:
                low = middle
        return choose(high)

    def lowest(self, prices: Mapping[str, float]) -> Chosen:
        """The units of the lowest scores over the price of a unit of their group that bring the graph within
        the bound."""
        order = self.ranked(prices)
        return self.least(lambda count: self.taken(order[:count]), len(order))

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
            kept = -(-(units - count) // self.steps[name]) * self.steps[name]
            if kept < units:
                chosen[name] = self.orders[name][: units - kept].tolist()
        return self._with_something_left(chosen)

    def knapsack(self) -> Chosen:
        """The choice with the least sum of scores of those by prices and of those by curves, filled up."""
        found: Chosen = {}
        seen: dict[float, Chosen] = {}
        for _ in range(ROUNDS):
            found = self.lowest(self._prices(found))
            lost = self._lost(found)
            if lost in seen:
                break
            seen[lost] = found
        filled = [self.filled(seen[min(seen)])]
        for _ in range(REFINED):
            better = self._by_curves(min(filled, key=self._lost))
            if better is None or better in filled:
                break
            filled.append(self.filled(better))
        return min(filled, key=self._lost)

    def _prices(self, chosen: Chosen) -> dict[str, float]:
        """By group, what a unit costs beside what stays: the difference to one step more, or less."""
        now = self.cost(chosen)
        differences = {}
        for name, step in self.steps.items():
            gone = len(chosen.get(name, []))
            other = gone + step if gone + step <= self.limits[name] else max(gone - step, 0)
            moved = dict(chosen) | {name: self.orders[name][:other].tolist()}
            differences[name] = abs(now - self.cost(moved)) / max(abs(other - gone), 1)
        least = max(1e-9 * max(differences.values(), default=1.0), np.finfo(np.float64).tiny)
        return {name: max(one, least) for name, one in differences.items()}

    def _by_curves(self, chosen: Chosen) -> Chosen | None:
        """The numbers of units that lose least, where each saves what it does beside the widths of a choice;
        more is asked for until the graph is within the bound. None if it never is."""
        names, now = list(self.scores), self.cost(chosen)
        counts = [_spread(self.limits[name], self.steps[name], len(self.scores[name])) for name in names]
        curves = [self._curve(chosen, name, one) for name, one in zip(names, counts, strict=True)]
        lost = []
        for name, one in zip(names, counts, strict=True):
            ordered = self.scores[name][self.orders[name]]
            lost.append(np.concatenate([[0.0], np.cumsum(ordered)])[one])
        needed = now + math.fsum(float(curve[0]) - now for curve in curves) - self.bound.most
        for _ in range(TRIES):
            taken = least_lost(lost, [curve[0] - curve for curve in curves], needed)
            if taken is None:
                return None
            gone = {name: int(one[at]) for name, one, at in zip(names, counts, taken, strict=True)}
            found = self.by_count(gone)
            over = self.cost(found) - self.bound.most
            if over <= 0:
                return found
            needed += over
        return None

    def _curve(self, chosen: Chosen, name: str, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        """What the graph costs with so many units of one group gone and the others as chosen, straight
        between the numbers that are told; float64 [counts]."""
        told = counts[np.unique(np.linspace(0, len(counts) - 1, LEVELS).round().astype(np.int64))]
        costs = [
            self.cost(dict(chosen) | {name: self.orders[name][:count].tolist()}) for count in told.tolist()
        ]
        return np.interp(counts, told, costs)

    def _lost(self, chosen: Chosen) -> float:
        return math.fsum(float(self.scores[name][unit]) for name, units in chosen.items() for unit in units)

    def filled(self, chosen: Chosen, *, once: bool = False) -> Chosen:
        """Units back, those of the highest scores first, as long as the budget is met; `once`: of every
        group at most one step."""
        found = {}
        for name, units in chosen.items():
            gone = set(units)
            found[name] = [unit for unit in self.orders[name].tolist() if unit in gone]
        open_ = {name for name, units in found.items() if len(units) >= self.steps[name]}
        while open_:
            name = max(sorted(open_), key=lambda one: float(self.scores[one][found[one][-1]]))
            step = self.steps[name]
            less = found | {name: found[name][:-step]}
            fits = self.fits(less)
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


def _step(group: Group, multiple: int) -> int:
    """So many units of a group are a multiple of channels: a head is as many channels as it is wide."""
    wide = min((site.places.shape[1] for site in group.producers()), default=1) if group.heads else 1
    return multiple // math.gcd(multiple, wide)


def _spread(limit: int, step: int, units: int) -> NDArray[np.int64]:
    """Numbers of units that may go and leave a multiple of `step`, none of them first, at most `OPTIONS`."""
    possible = [gone for gone in range(limit + 1) if gone == 0 or (units - gone) % step == 0]
    places = np.linspace(0, len(possible) - 1, min(len(possible), OPTIONS)).round().astype(np.int64)
    return np.array(possible, dtype=np.int64)[np.unique(places)]


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
