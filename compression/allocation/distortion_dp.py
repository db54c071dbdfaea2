"""Distortion curves and an exact dynamic programme over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from compression.allocation import allocations
from compression.allocation.base import Evidence, by_layer, check_room, shifted
from compression.parameters import parameter

GRID = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Sparsities of the programme, and the resolution of what is removed in all.
STEPS = 100
RESOLUTION = 2000


@allocations.register
@dataclass(frozen=True)
class DistortionDp:
    """Least sum of distortions at the target. The distortion of a layer at a sparsity is the divergence of
    the model from the dense one when this layer alone is pruned; curves are measured on a grid, made
    monotone, read linearly between its points, and the best combination is found by dynamic programming.
    Other targets need no new measurement. In the spirit of SPDY (Frantar & Alistarh 2022), with measured
    divergences for its coefficients.
    """

    name: ClassVar[str] = "distortion-dp"
    summary: ClassVar[str] = (
        "Measures what each layer costs at each sparsity and finds the best combination exactly."
    )
    paper: ClassVar[str | None] = "2201.13096"
    needs: ClassVar[frozenset[str]] = frozenset({"divergence"})

    distortion_sequences: int = parameter(
        16, "Distortion curves: calibration sequences they are measured on.", ge=1, le=65536
    )

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """All sites of a layer get the sparsity of their layer, but for a rest of less than a thousandth."""
        check_room(evidence.bounds, remove_total)
        layers = sorted({site.layer for site in evidence.sites})
        curves: dict[int, list[float]] = {}
        for number, layer in enumerate(layers):
            curves[layer] = [
                evidence.divergence({layer: level}, self.distortion_sequences) if level else 0.0
                for level in GRID
            ]
            evidence.progress(number + 1, len(layers))
        sizes = {layer: 0 for layer in layers}
        limits = {layer: [0, 0] for layer in layers}
        for site in evidence.sites:
            sizes[site.layer] += evidence.units(site.name)
            limits[site.layer][0] += evidence.bounds[site.name].least
            limits[site.layer][1] += evidence.bounds[site.name].most
        chosen = best_combination(
            [dense_curve(GRID, curves[layer]) for layer in layers],
            [sizes[layer] for layer in layers],
            [(limits[layer][0], limits[layer][1]) for layer in layers],
            remove_total,
        )
        sparsities = {layer: step / STEPS for layer, step in zip(layers, chosen, strict=True)}
        return shifted(evidence, by_layer(evidence, sparsities), remove_total)


def dense_curve(grid: Sequence[float], values: Sequence[float]) -> list[float]:
    """The curve at 0, 1 / STEPS, ... 1: made to rise, linear between the points, and beyond the last one as
    steep as before it.
    """
    rising = [max(values[: place + 1]) for place in range(len(values))]
    result = []
    for step in range(STEPS + 1):
        at = step / STEPS
        place = max(1, min(len(grid) - 1, sum(1 for point in grid if point < at)))
        low, high = grid[place - 1], grid[place]
        slope = (rising[place] - rising[place - 1]) / (high - low)
        result.append(rising[place - 1] + slope * (at - low))
    return result


def best_combination(
    curves: Sequence[Sequence[float]],
    sizes: Sequence[int],
    limits: Sequence[tuple[int, int]],
    remove_total: int,
) -> list[int]:
    """For each layer the step (sparsity * STEPS) with the least sum of costs that removes at least the
    target.

    Exact for the curves at the resolution of total / RESOLUTION. `limits` are the fewest and most units each
    layer may lose; a layer whose limits leave no step between them takes the nearest step below its most.
    """
    unit = max(1, sum(sizes) // RESOLUTION)
    goal = -(-remove_total // unit)
    best: Mapping[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    for curve, size, (least, most) in zip(curves, sizes, limits, strict=True):
        steps = [step for step in range(STEPS + 1) if least <= size * step // STEPS <= most]
        steps = steps or [most * STEPS // max(1, size)]
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for done, (cost, path) in best.items():
            for step in steps:
                reached = min(goal, done + size * step // STEPS // unit)
                total = cost + curve[step]
                known = following.get(reached)
                if known is None or total < known[0]:
                    following[reached] = (total, (*path, step))
        best = following
    return list(best[goal if goal in best else max(best)][1])
