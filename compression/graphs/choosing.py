"""Which units go until what a graph costs fits a target of any kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from compression.graphs.allocation import NORMALISE, SHARE_KEPT, Chosen, check_scores, whole_axes
from compression.graphs.costs import CostModel, Costs
from compression.graphs.criteria import Scores
from compression.graphs.dependencies import Anatomy
from compression.graphs.removal import removed_labels


def choose_within(
    anatomy: Anatomy,
    scores: Mapping[str, Scores],
    fits: Callable[[Costs], bool],
    *,
    across_groups: bool = True,
    share_kept: float = SHARE_KEPT,
    multiple: int = 1,
    normalise: str = "mean",
    model: CostModel | None = None,
) -> tuple[Chosen | None, Costs]:
    """The fewest units of the lowest scores (by the name of a group) without which the costs fit, and these
    costs; None and the least costs that can be reached where they never do. A group without scores stays
    whole; of the others a multiple of `multiple` units stays, or all. `normalise` (as of `allocate`) is what
    the scores of a group are divided by. ScoresInvalid for scores that are not finite."""
    check_scores(scores)
    plan = _Ranking(anatomy, scores, share_kept, multiple, normalise)
    choose: Callable[[int], Chosen] = plan.lowest if across_groups else plan.share
    model = model or CostModel(anatomy)
    high = plan.steps(across_groups)
    reached = model.without(choose(high))
    if not fits(reached):
        return None, reached
    low = -1  # `high` meets the target, `low` does not
    while high - low > 1:
        middle = (low + high) // 2
        costs = model.without(choose(middle))
        if fits(costs):
            high, reached = middle, costs
        else:
            low = middle
    chosen = choose(high)
    if multiple > 1:  # a step may take many units at once, more than are needed
        chosen, reached = _given_back(plan, chosen, reached, model, fits)
    return chosen, reached


def _given_back(
    plan: _Ranking, chosen: Chosen, reached: Costs, model: CostModel, fits: Callable[[Costs], bool]
) -> tuple[Chosen, Costs]:
    """The same choice with so many multiples of units brought back, the best ones first, as the costs
    allow."""
    for name in plan.by_worth(chosen):
        while name in chosen:
            fewer = plan.without_best(chosen, name)
            costs = model.without(fewer)
            if not fits(costs):
                break
            chosen, reached = fewer, costs
    return chosen, reached


class _Ranking:
    """Units in the order in which they go, within what must stay."""

    def __init__(
        self,
        anatomy: Anatomy,
        scores: Mapping[str, Scores],
        share_kept: float,
        multiple: int,
        normalise: str,
    ) -> None:
        self._anatomy = anatomy
        self._multiple = multiple
        self._orders = {name: np.argsort(one, kind="stable") for name, one in scores.items()}
        self._limits = {
            name: max(len(one) - max(math.ceil(share_kept * len(one)), 1), 0) for name, one in scores.items()
        }
        entries = []
        for place, (name, one) in enumerate(scores.items()):
            relative = one / max(NORMALISE[normalise](one), np.finfo(np.float64).tiny)
            for rank, unit in enumerate(self._orders[name][: self._limits[name]].tolist()):
                entries.append((float(relative[unit]), place, rank, name, unit))
        self._entries = sorted(entries)
        self._worth = {(name, unit): one for one, _, _, name, unit in entries}
        self._axes = whole_axes(anatomy)

    def steps(self, across_groups: bool) -> int:
        """How many steps there are from nothing to all that may go."""
        return len(self._entries) if across_groups else max(self._limits.values(), default=0) * 4

    def lowest(self, count: int) -> Chosen:
        """The `count` units of the lowest scores."""
        chosen: Chosen = {}
        for _, _, _, name, unit in self._entries[:count]:
            chosen.setdefault(name, []).append(unit)
        return self._with_something_left(chosen)

    def share(self, step: int) -> Chosen:
        """The same share of every group."""
        most = self.steps(across_groups=False)
        chosen = {
            name: self._orders[name][: (limit * step) // most].tolist()
            for name, limit in self._limits.items()
            if most
        }
        return self._with_something_left({name: units for name, units in chosen.items() if units})

    def _with_something_left(self, chosen: Chosen) -> Chosen:
        """Round what stays of a group up, then bring back the best unit of an axis that would lose all its
        elements (a part of a split, say)."""
        chosen = {name: units[: self._fewer(name, len(units))] for name, units in chosen.items()}
        gone = removed_labels(self._anatomy, chosen)
        by_label = {
            int(self._anatomy.group(name).labels[unit]): (name, unit)
            for name, units in chosen.items()
            for unit in units
        }
        for labels in self._axes:
            if gone[labels].all():
                best = max((by_label[label] for label in labels.tolist()), key=lambda unit: self._worth[unit])
                chosen[best[0]].remove(best[1])
                gone[self._anatomy.group(best[0]).labels[best[1]]] = False
        return {name: sorted(units) for name, units in chosen.items() if units}

    def by_worth(self, chosen: Chosen) -> list[str]:
        """The groups that units were chosen of, those that lose the best unit first."""
        best = {name: max(self._worth[name, unit] for unit in units) for name, units in chosen.items()}
        return sorted(best, key=lambda name: (-best[name], name))

    def without_best(self, chosen: Chosen, name: str) -> Chosen:
        """The same choice with the best `multiple` units of a group back."""
        units = sorted(chosen[name], key=lambda unit: self._worth[name, unit])[: -self._multiple]
        rest = {other: kept for other, kept in chosen.items() if other != name}
        return {**rest, name: sorted(units)} if units else rest

    def _fewer(self, name: str, gone: int) -> int:
        """How many of the `gone` units of a group go, in the order of their scores, so that a multiple
        stays."""
        units = len(self._orders[name])
        kept = -(-(units - gone) // self._multiple) * self._multiple
        return max(units - kept, 0)
