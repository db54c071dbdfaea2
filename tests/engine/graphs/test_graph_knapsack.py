"""The multiple-choice knapsack beside all choices, and its use with made-up prices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import helper

from compression.graphs.allocation import Bound, allocate
from compression.graphs.costs import CostModel
from compression.graphs.criteria import Scores
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.graph import read_graph
from compression.graphs.knapsack import Floats, least_lost
from compression.graphs.pruning import score_units
from tests.engine.graphs.exports import stored
from tests.engine.graphs.samples import floats, model_of


def chain() -> Anatomy:
    """Four convolutions, three of whose widths can be cut."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]), helper.make_node("Conv", ["h", "b"], ["k"]),
        helper.make_node("Conv", ["k", "c"], ["l"]), helper.make_node("Conv", ["l", "d"], ["y"]),
    ]  # fmt: skip
    weights = {
        "a": floats(6, 3, 1, 1), "b": floats(8, 6, 1, 1), "c": floats(5, 8, 1, 1), "d": floats(2, 5, 1, 1),
    }  # fmt: skip
    return analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights)))


def items(seed: int) -> tuple[list[Floats], list[Floats]]:
    draw = np.random.default_rng(seed)
    lost, saved = [], []
    for options in (4, 5, 3, 4, 5):
        lost.append(np.concatenate([[0.0], draw.random(options - 1).cumsum()]))
        saved.append(np.concatenate([[0.0], draw.random(options - 1).cumsum()]))
    return lost, saved


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.95])
def test_nothing_loses_less(seed: int, share: float) -> None:
    lost, saved = items(seed)
    needed = share * sum(float(one.max()) for one in saved)
    best = min(
        sum(float(one[at]) for one, at in zip(lost, places, strict=True))
        for places in itertools.product(*(range(len(one)) for one in lost))
        if sum(float(one[at]) for one, at in zip(saved, places, strict=True)) >= needed
    )
    found = least_lost(lost, saved, needed)
    assert found is not None
    assert sum(float(one[at]) for one, at in zip(saved, found, strict=True)) >= needed - 1e-9
    assert sum(float(one[at]) for one, at in zip(lost, found, strict=True)) == pytest.approx(best, abs=1e-12)


def test_few_states_still_save_enough() -> None:
    lost, saved = items(3)
    needed = 0.6 * sum(float(one.max()) for one in saved)
    exact, coarse = least_lost(lost, saved, needed), least_lost(lost, saved, needed, states=6)
    assert exact is not None
    assert coarse is not None
    assert sum(float(one[at]) for one, at in zip(saved, coarse, strict=True)) >= needed - 1e-9
    losses = [
        sum(float(one[at]) for one, at in zip(lost, taken, strict=True)) for taken in (exact, coarse)
    ]  # fmt: skip
    assert losses[0] <= losses[1] <= 2 * losses[0]


def test_what_cannot_be_saved_is_none() -> None:
    lost, saved = items(1)
    assert least_lost(lost, saved, 1.01 * sum(float(one.max()) for one in saved)) is None


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(3))
def test_coupled_widths_are_near_the_best_of_all(ratio: float, seed: int) -> None:
    anatomy = chain()
    model, draw = CostModel(anatomy), np.random.default_rng(seed)
    scores: dict[str, Scores] = {group.name: draw.random(group.units) ** 2 for group in anatomy.groups}
    orders = {name: np.argsort(one).tolist() for name, one in scores.items()}
    allowed, best = ratio * model.without({}).macs, np.inf
    for counts in itertools.product(*(range(len(one)) for one in scores.values())):
        tried = {name: orders[name][:count] for name, count in zip(scores, counts, strict=True)}
        if model.without(tried).macs <= allowed:
            best = min(best, sum(float(scores[name][units].sum()) for name, units in tried.items()))
    bound = Bound(lambda gone: model.without(gone).macs, allowed, "macs", share_kept=0)
    chosen = allocate(anatomy, scores, bound, "knapsack", "none")
    assert model.without(chosen).macs <= allowed
    lost = sum(float(scores[name][units].sum()) for name, units in chosen.items())
    assert best - 1e-12 <= lost <= 1.1 * best


def test_the_price_of_a_group_decides() -> None:
    """All scores alike: units of the group that alone costs go, whichever it is."""
    anatomy = chain()
    scores: dict[str, Scores] = {group.name: np.ones(group.units) for group in anatomy.groups}
    for group in anatomy.groups:

        def of(gone: dict[str, list[int]], name: str = group.name) -> float:
            return float(anatomy.group(name).units - len(gone.get(name, [])))

        bound = Bound(of, 0.5 * group.units, "units of one group")
        chosen = allocate(anatomy, scores, bound, "knapsack", "none")
        assert list(chosen) == [group.name]
        assert len(chosen[group.name]) == -(-group.units // 2)


@pytest.mark.parametrize("name", ["vit", "grouped-queries"])
def test_a_multiple_counts_the_channels_of_heads(name: str) -> None:
    """Heads are four channels wide, so that two of them are a multiple of eight."""
    anatomy = analyse(read_graph(stored(name)))
    heads = [group for group in anatomy.groups if group.heads]
    assert heads
    scores = score_units(anatomy, "group-l2")

    def of(gone: dict[str, list[int]]) -> float:
        return float(sum(group.units - len(gone.get(group.name, [])) for group in heads))

    total = sum(group.units for group in heads)
    chosen = allocate(anatomy, scores, Bound(of, total - 1, "heads", share_kept=0, multiple=8))
    for group in heads:
        wide = min(site.places.shape[1] for site in group.producers())
        gone = len(chosen.get(group.name, []))
        assert gone == 0 or (group.units - gone) * wide % 8 == 0
    assert any(group.name in chosen for group in heads)
