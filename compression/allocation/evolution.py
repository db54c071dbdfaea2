"""Evolutionary search over a database of pruned layers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from compression.allocation import allocations
from compression.allocation.base import Evidence, by_layer, check_room, mean_sparsity, shifted
from compression.parameters import parameter

Levels = tuple[int, ...]


@allocations.register
@dataclass(frozen=True)
class Evolution:
    """Layers trade sparsity in steps; children of the best combination so far are measured on more and more
    data (Sieberling et al. 2024, EvoPress, algorithm 1: level switches that keep the total, multi-step
    selection).
    """

    name: ClassVar[str] = "evolution"
    summary: ClassVar[str] = (
        "Searches combinations of layer sparsities by their divergence from the dense model."
    )
    paper: ClassVar[str | None] = "2410.14649"
    needs: ClassVar[frozenset[str]] = frozenset({"divergence"})

    evolution_generations: int = parameter(20, "Evolution: rounds of the search.", ge=1, le=10000)
    evolution_offspring: int = parameter(16, "Evolution: children tried each round.", ge=2, le=1024)
    evolution_sequences: int = parameter(
        16,
        "Evolution: calibration sequences of the last selection; the first one uses an eighth.",
        ge=1,
        le=65536,
    )
    evolution_step: float = parameter(0.05, "Evolution: difference between levels.", ge=0.005, le=0.25)
    evolution_levels: int = parameter(4, "Evolution: levels on either side of the target.", ge=1, le=20)

    def allocate(self, evidence: Evidence, remove_total: int) -> dict[str, int]:
        """All sites of a layer get the sparsity of their layer."""
        check_room(evidence.bounds, remove_total)
        layers = sorted({site.layer for site in evidence.sites})
        centre = mean_sparsity(evidence, remove_total)
        sizes = [
            sum(evidence.units(site.name) for site in evidence.sites if site.layer == layer)
            for layer in layers
        ]

        def sparsities(levels: Levels) -> dict[int, float]:
            steps = zip(layers, levels, strict=True)
            return {layer: round(centre + self.evolution_step * level, 6) for layer, level in steps}

        def cost(levels: Levels, sequences: int) -> float:
            return evidence.divergence(sparsities(levels), sequences)

        best = self._search(sizes, centre, cost, evidence.progress)
        return shifted(evidence, by_layer(evidence, sparsities(best)), remove_total)

    def _search(
        self,
        sizes: list[int],
        centre: float,
        cost: Callable[[Levels, int], float],
        progress: Callable[[int, int], None],
    ) -> Levels:
        dice = random.Random(0)
        reach = self.evolution_levels
        low = max(-reach, -int(centre / self.evolution_step))
        high = min(reach, int((1 - centre) / self.evolution_step - 1e-9))
        parent: Levels = (0,) * len(sizes)
        if len(sizes) < 2:
            return parent
        few = max(1, self.evolution_sequences // 8)
        for generation in range(self.evolution_generations):
            children = {switched(parent, sizes, low, high, dice) for _ in range(self.evolution_offspring)}
            children.add(parent)
            first = sorted(children, key=lambda levels: (cost(levels, few), levels))
            second = {*first[: max(2, len(first) // 4)], parent}
            parent = min(second, key=lambda levels: (cost(levels, self.evolution_sequences), levels))
            progress(generation + 1, self.evolution_generations)
        return parent


def switched(parent: Levels, sizes: list[int], low: int, high: int, dice: random.Random) -> Levels:
    """A copy in which one to three pairs of layers of the same size have traded one level, inside [low,
    high]."""
    levels = list(parent)
    for _ in range(min(dice.randint(1, 3), dice.randint(1, 3))):
        pairs = [
            (up, down)
            for up in range(len(levels))
            for down in range(len(levels))
            if up != down and sizes[up] == sizes[down] and levels[up] < high and levels[down] > low
        ]
        if pairs:
            up, down = dice.choice(pairs)
            levels[up] += 1
            levels[down] -= 1
    return tuple(levels)
