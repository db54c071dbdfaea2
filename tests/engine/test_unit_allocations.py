"""Allocations of units: within the budget, as near as a step allows, and by their own rules."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.allocation.structures import structure_allocations
from compression.allocation.structures.knapsack import best_levels
from compression.allocation.units import by_loss, total
from compression.anatomy.structures import Group
from compression.errors import TargetUnreachable

NEURONS, HEADS, LAYERS = 24, 6, 4
COSTS = {"neuron": 10, "head": 160}


class Known:
    """Evidence that is made up: losses of known shape, divergences that are additive and then some."""

    def __init__(self, steps: int = 2, seed: int = 0, floor: int = 1, parts: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.groups = [
            Group(kind, layer, count, ())  # type: ignore[arg-type]
            for layer in range(LAYERS)
            for kind, count in (("neuron", NEURONS), ("head", HEADS))
        ]
        self._scores = {
            group.name: torch.rand(group.count, generator=generator, dtype=torch.float64) * (1 + group.layer)
            for group in self.groups
        }
        self._steps, self._floor, self._parts = steps, floor, parts
        self.asked: list[tuple[Mapping[str, int], int]] = []

    def spent(self, group: Group, kept: int) -> int:
        return kept * COSTS[group.kind]

    def steps(self, group: Group) -> Sequence[int]:
        first = self._steps if group.kind == "neuron" else 1
        some = [*range(first * self._floor, group.count, first), group.count]
        # The first layer keeps a head.
        return [0, *some] if self._parts and (group.kind, group.layer) != ("head", 0) else some

    def levels(self, group: Group) -> Sequence[int]:
        steps = self.steps(group)
        return [*steps[:: max(1, len(steps) // 4)][:-1], steps[-1]] if len(steps) > 5 else steps

    def scores(self, group: Group) -> Tensor:
        return self._scores[group.name]

    def losses(self, group: Group) -> Sequence[float]:
        return [0.0, *self._scores[group.name].sort().values.cumsum(0).tolist()]

    def influence(self) -> Sequence[float]:
        return [0.4, 0.1, 0.2, 0.3]

    def divergence(self, keep: Mapping[str, int], sequences: int) -> float:
        self.asked.append((keep, sequences))
        by_name = {group.name: group for group in self.groups}
        parts = [
            self.losses(by_name[name])[by_name[name].count - kept] ** 2 for name, kept in sorted(keep.items())
        ]
        return sum(parts)

    def loss(self, kept: Mapping[str, Tensor], sequences: int) -> float:
        self.asked.append(({name: len(units) for name, units in kept.items()}, sequences))
        lost = 0.0
        for group in self.groups:
            stays = kept.get(group.name, torch.arange(group.count))
            gone = float(self._scores[group.name].sum() - self._scores[group.name][stays].sum())
            lost += gone + gone**2 / 10
        return lost

    seed = 0

    def progress(self, done: int, total: int) -> None:
        assert 0 < done <= total


WHOLE = LAYERS * (NEURONS * 10 + HEADS * 160)


@pytest.mark.parametrize("name", structure_allocations.names())
@pytest.mark.parametrize("share", [0.31, 0.5, 0.83, 0.999])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_budget_is_met_to_a_step(name: str, share: float, steps: int) -> None:
    evidence, budget = Known(steps), int(share * WHOLE)
    keep = structure_allocations[name].allocate(evidence, budget)
    assert keep.keys() == {group.name for group in evidence.groups}
    assert total(evidence, keep) <= budget
    for group in evidence.groups:
        assert keep[group.name] in evidence.steps(group)
        above = [step for step in evidence.steps(group) if step > keep[group.name]]
        if above:
            more = {**keep, group.name: above[0]}
            assert total(evidence, more) > budget, "one more step would fit"


@pytest.mark.parametrize("name", structure_allocations.names())
def test_what_cannot_be_met_is_said(name: str) -> None:
    with pytest.raises(TargetUnreachable, match="at least"):
        structure_allocations[name].allocate(Known(floor=3), int(0.05 * WHOLE))


@pytest.mark.parametrize("name", structure_allocations.names())
def test_the_same_every_time(name: str) -> None:
    found = [structure_allocations[name].allocate(Known(), int(0.6 * WHOLE)) for _ in range(2)]
    assert found[0] == found[1]


def test_global_keeps_what_is_dearest_for_its_cost() -> None:
    """With single steps: no head that went is worth more, for its cost, than one that stayed."""
    evidence = Known(1)
    keep = structure_allocations["global"].allocate(evidence, int(0.5 * WHOLE))
    gone, stayed = {}, {}
    for group in evidence.groups:
        scores = evidence.scores(group).sort().values
        less = group.count - keep[group.name]
        gone[group.name] = [float(score) / COSTS[group.kind] for score in scores[:less]]
        stayed[group.name] = [float(score) / COSTS[group.kind] for score in scores[less:]]
    heads = [name for name in gone if name.startswith("head")]
    # One step of a neuron may be given back at the end, so among heads alone the order is strict.
    worst = max(itertools.chain.from_iterable(gone[name] for name in heads))
    best = min(min(stayed[name]) for name in heads if len(stayed[name]) > 1)
    assert worst <= best or math.isclose(worst, best)


def test_standardized_compares_standardised_scores() -> None:
    """Against numpy: single units in the order of their standardised scores until the budget is met."""
    evidence, budget = Known(1), int(0.6 * WHOLE)
    rows = []
    for group in evidence.groups:
        scores = np.sort(evidence.scores(group).numpy())
        for place, value in enumerate((scores - scores.mean()) / scores.std()):
            # The first unit of a group may not go.
            rows.append((value if place < group.count - 1 else np.inf, group))
    spent, wanted = WHOLE, {group.name: group.count for group in evidence.groups}
    for _, group in sorted(rows, key=lambda row: row[0]):
        if spent <= budget:
            break
        wanted[group.name] -= 1
        spent -= COSTS[group.kind]
    found = structure_allocations["standardized"].allocate(evidence, budget)
    # What is left of the budget is given back.
    assert all(found[name] >= kept for name, kept in wanted.items())
    assert total(evidence, found) - spent < COSTS["head"]


def test_layers_of_more_influence_keep_more() -> None:
    keep = structure_allocations["influence"].allocate(Known(1), int(0.5 * WHOLE))
    kept = [keep[f"neuron.{layer}"] for layer in range(LAYERS)]
    assert kept[0] > kept[3] > kept[2] > kept[1]
    flat = type(structure_allocations["influence"])(influence_slope=0.0)  # type: ignore[call-arg]
    even = flat.allocate(Known(1), int(0.5 * WHOLE))
    assert {even[f"neuron.{layer}"] for layer in range(LAYERS)} <= {12, 13}


def test_later_layers_keep_less_and_ends_are_spared() -> None:
    keep = structure_allocations["depth"].allocate(Known(1), int(0.75 * WHOLE))
    kept = [keep[f"neuron.{layer}"] for layer in range(LAYERS)]
    assert kept[0] == kept[3] == NEURONS
    assert kept[1] > kept[2]


def test_knapsack_is_the_best_of_all_combinations() -> None:
    levels, costs = [[2, 4, 6], [1, 3], [0, 5, 7, 9]], [3, 10, 2]
    curves = [[5.0, 2.0, 0.0], [4.0, 0.0], [9.0, 3.0, 2.5, 0.0]]
    prices = [[number * cost for number in numbers] for numbers, cost in zip(levels, costs, strict=True)]
    for budget in range(16, 67):
        options = {
            tuple(numbers): sum(curves[n][levels[n].index(number)] for n, number in enumerate(numbers))
            for numbers in itertools.product(*levels)
            if sum(number * cost for number, cost in zip(numbers, costs, strict=True)) <= budget
        }
        found = tuple(best_levels(levels, prices, curves, budget))
        assert options[found] == min(options.values())
    assert best_levels(levels, prices, curves, 3) == [2, 1, 0]


def test_knapsack_and_evolution_beat_equal_shares() -> None:
    evidence, budget = Known(1), int(0.5 * WHOLE)
    by_name = {
        name: evidence.divergence(structure_allocations[name].allocate(evidence, budget), 16)
        for name in ("uniform", "knapsack", "evolution")
    }
    assert by_name["knapsack"] < by_name["uniform"]
    assert by_name["evolution"] < by_name["uniform"]


def test_evolution_looks_at_few_sequences_first() -> None:
    evidence = Known(1)
    chosen = type(structure_allocations["evolution"])(  # type: ignore[call-arg]
        search_generations=3, search_offspring=4, search_sequences=8
    )
    chosen.allocate(evidence, int(0.5 * WHOLE))
    assert {sequences for _, sequences in evidence.asked} == {2, 8}
    for keep, _ in evidence.asked:
        assert all(keep[group.name] in evidence.levels(group) for group in evidence.groups)


def test_prices_are_for_what_is_saved() -> None:
    evidence = Known(1)
    group = evidence.groups[0]
    price = by_loss(evidence)(group, NEURONS, NEURONS - 3)
    assert price == pytest.approx(float(evidence.scores(group).sort().values[:3].sum()) / 30)
