"""Evolutionary search over a database of cut layers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from compression.allocation.structures import structure_allocations
from compression.allocation.units import Keep, UnitEvidence, by_loss, check_budget, filled, saved, total
from compression.parameters import parameter

Places = tuple[int, ...]


@structure_allocations.register
@dataclass(frozen=True)
class StructureEvolution:
    """Groups trade levels within the budget; children of the best combination so far are measured on more and
    more data (Li et al. 2025, Tyr-the-Pruner, and Tang et al. 2025, DarwinLM: evolutionary search over
    variants of each layer, here by the divergence of the predictions; offspring are not trained)."""

    name: ClassVar[str] = "evolution"
    summary: ClassVar[str] = "Searches combinations of levels by the divergence of the whole model."
    paper: ClassVar[str | None] = "2503.09657"
    needs: ClassVar[frozenset[str]] = frozenset({"unit.divergence", "unit.scores"})

    search_generations: int = parameter(20, "Evolution: rounds of the search.", ge=1, le=10000)
    search_offspring: int = parameter(16, "Evolution: children tried each round.", ge=2, le=1024)
    search_sequences: int = parameter(
        16,
        "Evolution: calibration sequences of the last selection; the first one uses a quarter.",
        ge=1,
        le=65536,
    )

    def allocate(self, evidence: UnitEvidence, budget: int) -> Keep:
        """See `StructureAllocation`. The rest that levels leave is filled by the criterion's scores."""
        check_budget(evidence, budget)
        dice = random.Random(0)
        levels = [list(evidence.levels(group)) for group in evidence.groups]

        def numbers(places: Places) -> Keep:
            return {
                group.name: levels[number][place]
                for number, (group, place) in enumerate(zip(evidence.groups, places, strict=True))
            }

        def cost(places: Places, sequences: int) -> float:
            return evidence.divergence(numbers(places), sequences)

        def fitted(places: list[int]) -> Places:
            return _fitted(evidence, levels, places, budget, dice)

        few = max(1, self.search_sequences // 4)
        parent = fitted([len(one) - 1 for one in levels])
        seeds = {fitted([round(share * (len(one) - 1)) for one in levels]) for share in (0.4, 0.6, 0.8)}
        for generation in range(self.search_generations):
            children = {parent, *(seeds if not generation else ())}
            for _ in range(self.search_offspring):
                places = list(parent)
                for number in dice.sample(range(len(places)), min(len(places), dice.randint(1, 4))):
                    places[number] = min(
                        len(levels[number]) - 1, max(0, places[number] + dice.choice((-1, 1)))
                    )
                children.add(fitted(places))
            first = sorted(children, key=lambda places: (cost(places, few), places))
            second = {*first[: max(2, len(first) // 4)], parent}
            parent = min(second, key=lambda places: (cost(places, self.search_sequences), places))
            evidence.progress(generation + 1, self.search_generations)
        return filled(evidence, numbers(parent), budget, by_loss(evidence))


def _fitted(
    evidence: UnitEvidence, levels: list[list[int]], places: list[int], budget: int, dice: random.Random
) -> Places:
    """The levels brought to the budget: down until it is met, then up as long as one fits."""
    groups = list(evidence.groups)
    found = list(places)
    spent = total(evidence, {g.name: levels[n][found[n]] for n, g in enumerate(groups)})

    def move(number: int, by: int) -> int:
        row = levels[number]
        return saved(evidence, groups[number], row[found[number] + by], row[found[number]])

    while spent > budget:
        lower = [number for number in range(len(groups)) if found[number] > 0]
        if not lower:
            break
        number = dice.choice(lower)
        spent += move(number, -1)
        found[number] -= 1
    while True:
        higher = [
            number
            for number in range(len(groups))
            if found[number] + 1 < len(levels[number]) and spent + move(number, 1) <= budget
        ]
        if not higher:
            return tuple(found)
        number = dice.choice(higher)
        spent += move(number, 1)
        found[number] += 1
