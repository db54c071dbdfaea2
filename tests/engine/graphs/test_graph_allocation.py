"""Budgets of costs over groups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import helper

from compression.errors import TargetUnreachable
from compression.graphs.allocation import ALLOCATIONS, Budget, Chosen, ScoresInvalid, allocate
from compression.graphs.costs import CostModel, costs
from compression.graphs.criteria import CRITERIA, Scores
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.graph import read_graph
from compression.graphs.pruning import score_units
from tests.engine.graphs.exports import stored
from tests.engine.graphs.samples import floats, model_of

ANATOMIES = {name: analyse(read_graph(stored(name))) for name in ("option-a", "inverted", "vit")}


def cost(anatomy: Anatomy, chosen: Chosen, measure: str) -> int:
    found = costs(cut(anatomy, chosen))
    return found.macs if measure == "macs" else found.parameters


@pytest.mark.parametrize("name", ANATOMIES)
@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("measure", ["macs", "parameters"])
def test_budgets_are_met_and_no_group_collapses(name: str, allocation: str, measure: str) -> None:
    anatomy = ANATOMIES[name]
    scores = score_units(anatomy, "group-l2")
    budget = Budget(0.7, measure, share_kept=0.25)
    chosen = allocate(anatomy, scores, budget, allocation)
    dense = cost(anatomy, {}, measure)
    assert 0.6 < cost(anatomy, chosen, measure) / dense <= 0.7
    for group in anatomy.groups:
        kept = group.units - len(chosen.get(group.name, []))
        assert kept >= max(1, np.ceil(0.25 * group.units))
    assert allocate(anatomy, scores, budget, allocation) == chosen


def test_a_knapsack_takes_nothing_that_could_stay() -> None:
    anatomy = ANATOMIES["option-a"]
    scores = score_units(anatomy, "random", seed=3)
    chosen = allocate(anatomy, scores, Budget(0.5), "knapsack", "none")
    allowed = 0.5 * CostModel(anatomy).without({}).macs
    assert CostModel(anatomy).without(chosen).macs <= allowed
    for name, units in chosen.items():
        for unit in units:
            more = dict(chosen) | {name: [one for one in units if one != unit]}
            assert CostModel(anatomy).without(more).macs > allowed
    lost = {}
    for how in ALLOCATIONS:
        made = allocate(anatomy, scores, Budget(0.5), how, "none")
        lost[how] = sum(scores[name][unit] for name, units in made.items() for unit in units)
    assert lost["knapsack"] < min(lost["global"], lost["local"])


def test_a_knapsack_is_near_the_best_of_all_choices() -> None:
    """Three coupled convolutions, all widths tried."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]), helper.make_node("Conv", ["h", "b"], ["k"]),
        helper.make_node("Conv", ["k", "c"], ["l"]), helper.make_node("Conv", ["l", "d"], ["y"]),
    ]  # fmt: skip
    weights = {
        "a": floats(6, 3, 1, 1),
        "b": floats(8, 6, 1, 1),
        "c": floats(5, 8, 1, 1),
        "d": floats(2, 5, 1, 1),
    }
    anatomy = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights)))
    model, draw = CostModel(anatomy), np.random.default_rng(0)
    for ratio in (0.3, 0.5, 0.7):
        scores: dict[str, Scores] = {group.name: draw.random(group.units) ** 2 for group in anatomy.groups}
        orders = {name: np.argsort(one).tolist() for name, one in scores.items()}
        best = np.inf
        for counts in itertools.product(*(range(len(one)) for one in scores.values())):
            tried = {name: orders[name][:count] for name, count in zip(scores, counts, strict=True)}
            if model.without(tried).macs <= ratio * model.without({}).macs:
                best = min(best, sum(scores[name][units].sum() for name, units in tried.items()))
        chosen = allocate(anatomy, scores, Budget(ratio, share_kept=0), "knapsack", "none")
        assert sum(scores[name][units].sum() for name, units in chosen.items()) <= 1.25 * best


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_what_stays_is_a_multiple(allocation: str) -> None:
    anatomy = ANATOMIES["option-a"]
    chosen = allocate(anatomy, score_units(anatomy, "group-l1"), Budget(0.6, multiple=4), allocation, "max")
    assert chosen
    for name, units in chosen.items():
        assert (anatomy.group(name).units - len(units)) % 4 == 0
    assert CostModel(anatomy).without(chosen).macs <= 0.6 * CostModel(anatomy).without({}).macs


def test_scores_are_comparable_as_asked() -> None:
    anatomy = ANATOMIES["inverted"]
    scores = {
        group.name: np.arange(1.0, group.units + 1) * 10**place for place, group in enumerate(anatomy.groups)
    }
    first = allocate(anatomy, scores, Budget(0.8), "global", "none")
    assert set(first) == {anatomy.groups[0].name, anatomy.groups[1].name} or len(first) < len(anatomy.groups)
    even = allocate(anatomy, scores, Budget(0.8), "global", "mean")
    assert len(even) > len(first)


def test_what_cannot_be_done_is_said() -> None:
    anatomy = ANATOMIES["vit"]
    scores = score_units(anatomy, "group-l2")
    with pytest.raises(TargetUnreachable, match=r"at least 0\.\d+ of the parameters stay"):
        allocate(anatomy, scores, Budget(0.01, "parameters"))
    broken = dict(scores)
    name = next(iter(broken))
    broken[name] = np.full_like(broken[name], np.nan)
    with pytest.raises(ScoresInvalid, match="unit 0 of the group"):
        allocate(anatomy, broken, Budget(0.5))
    for wrong in ({"ratio": 0.0}, {"ratio": 0.5, "measure": "watts"}, {"ratio": 0.5, "multiple": 0}):
        with pytest.raises(ValueError, match=r"the ratio|the measure"):
            Budget(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="allocations are"):
        allocate(anatomy, scores, Budget(0.5), "fair")


def test_lamp_and_fpgm_by_hand() -> None:
    nodes = [helper.make_node("Conv", ["x", "a", "b"], ["h"]), helper.make_node("Conv", ["h", "c"], ["y"])]
    weights = {"a": floats(5, 3, 2, 2), "b": floats(5), "c": floats(2, 5, 1, 1)}
    anatomy = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights)))
    group = anatomy.groups[0]
    norms = [
        float((weights["a"][unit].astype(float) ** 2).sum() + float(weights["b"][unit]) ** 2
              + (weights["c"][:, unit].astype(float) ** 2).sum())
        for unit in range(5)
    ]  # fmt: skip
    wanted = [one / sum(other for other in norms if other >= one) for one in norms]
    np.testing.assert_allclose(CRITERIA["group-lamp"].scores(anatomy, group, 0), wanted, rtol=1e-12)
    rows = weights["a"].reshape(5, -1).astype(float)
    apart = [sum(float(np.linalg.norm(one - other)) for other in rows) for one in rows]
    np.testing.assert_allclose(CRITERIA["fpgm"].scores(anatomy, group, 0), apart, rtol=1e-7)
