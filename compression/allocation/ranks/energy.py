"""Ranks by what directions hold, compared over all weights."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from compression.allocation.ranks import rank_allocations
from compression.allocation.spectra import RankEvidence
from compression.anatomy.ranks import RankBudget, stored

Point = tuple[int, float, int | None]
"""(elements stored, share of the energy lost, rank; None: dense)."""


@rank_allocations.register
class Energy:
    """The least sum over weights of the share that is lost of their energy, the squares of the criterion's
    values.

    Of every weight, lost energy over stored elements is a curve with the dense weight at its end. From dense
    weights on, the step along the lower convex hull of a curve that loses least for an element saved is
    taken, again and again (the optimum but for the last step where curves are convex), and what is left of
    the budget is given back in single ranks.
    """

    name = "energy"
    summary = (
        "Directions are cut where the smallest share of a weight's energy is lost for an element saved, over "
        "all weights; some may stay dense."
    )
    paper = None
    needs = frozenset[str]()

    def allocate(self, evidence: RankEvidence, budget: RankBudget) -> dict[str, int]:
        """See `RankAllocation`."""
        curves = {
            site.name: curve(evidence.values(site.name), site.shape, budget.steps[site.name])
            for site in budget.sites
            if budget.steps[site.name]
        }
        chosen = _fewest(curves, budget)
        _give_back(curves, chosen, budget)
        found = {name: curves[name][place][2] for name, place in chosen.items()}
        return {name: rank for name, rank in found.items() if rank is not None}


def curve(values: Sequence[float], shape: tuple[int, int], steps: Sequence[int]) -> list[Point]:
    """What is lost at each of the ranks, ascending, and nothing at the end, where the weight is dense."""
    squares = [value * value for value in values]
    lost = [0.0]
    for square in reversed(squares):
        lost.append(lost[-1] + square)
    lost.reverse()
    whole = lost[0] or 1.0
    points: list[Point] = [(stored(shape, rank), lost[rank] / whole, rank) for rank in steps]
    return [*points, (stored(shape, None), 0.0, None)]


def hull(points: Sequence[Point]) -> list[int]:
    """The places of the points on the lower convex hull, ascending; the first and the last are on it."""
    found: list[int] = []
    for place, (at, lost, _) in enumerate(points):
        while len(found) > 1:
            (first, high, _), (middle, low, _) = points[found[-2]], points[found[-1]]
            if (low - high) * (at - middle) < (lost - low) * (middle - first):
                break
            found.pop()
        found.append(place)
    return found


def _fewest(curves: dict[str, list[Point]], budget: RankBudget) -> dict[str, int]:
    """Places on the curves, from dense weights down along the hulls until the budget is met."""
    hulls = {name: hull(points) for name, points in curves.items()}
    chosen = {name: len(points) - 1 for name, points in curves.items()}
    used = budget.whole
    waiting: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        if len(hulls[name]) > 1:
            (low, lost, _), (high, less, _) = (curves[name][place] for place in hulls[name][-2:])
            heapq.heappush(waiting, ((lost - less) / (high - low), name))

    for name in curves:
        offer(name)
    while used > budget.total:
        _, name = heapq.heappop(waiting)
        before = curves[name][hulls[name].pop()][0]
        chosen[name] = hulls[name][-1]
        used -= before - curves[name][chosen[name]][0]
        offer(name)
    return chosen


def _give_back(curves: dict[str, list[Point]], chosen: dict[str, int], budget: RankBudget) -> None:
    """Single steps up that still fit, the one that gains most for an element first."""
    left = budget.total - sum(curves[name][place][0] for name, place in chosen.items())
    left -= sum(site.size for site in budget.sites if site.name not in curves)
    waiting: list[tuple[float, str]] = []

    def offer(name: str) -> None:
        if chosen[name] + 1 < len(curves[name]):
            (low, lost, _), (high, less, _) = curves[name][chosen[name] : chosen[name] + 2]
            heapq.heappush(waiting, ((less - lost) / (high - low), name))

    for name in curves:
        offer(name)
    while waiting:
        _, name = heapq.heappop(waiting)
        step = curves[name][chosen[name] + 1][0] - curves[name][chosen[name]][0]
        if step <= left:
            left -= step
            chosen[name] += 1
            offer(name)
