"""Choosing units under a target of multiply-accumulates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper

from compression.errors import TargetUnreachable
from compression.graphs.allocation import Bound, ScoresInvalid, allocate
from compression.graphs.costs import CostModel, costs
from compression.graphs.criteria import CRITERIA, Scores
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.executor import GraphModule
from compression.graphs.graph import read_graph
from compression.graphs.masking import disagreement, mask
from compression.graphs.pruning import choose_units
from compression.registry import UnknownEntry
from tests.conftest import SHARED
from tests.engine.graphs.exports import stored
from tests.engine.graphs.samples import floats, model_of, whole


@pytest.fixture(scope="module")
def dense() -> Anatomy:
    return analyse(read_graph(stored("dense")))


@pytest.mark.parametrize("criterion", [name for name in CRITERIA.names() if not CRITERIA[name].needs])
@pytest.mark.parametrize("across", [True, False])
def test_the_target_is_met_and_no_more_goes_than_needed(dense: Anatomy, criterion: str, across: bool) -> None:
    model = CostModel(dense)
    whole_cost = model.without({}).macs
    chosen = choose_units(dense, 0.7, criterion, across_groups=across)
    ratio = costs(cut(dense, chosen)).macs / whole_cost
    assert 0.45 < ratio <= 0.7
    assert choose_units(dense, 0.7, criterion, across_groups=across) == chosen
    for group in dense.groups:
        assert len(chosen.get(group.name, [])) <= group.units - max(1, np.ceil(0.1 * group.units))
    if across:  # one unit less would not do
        scores = {group.name: CRITERIA[criterion].scores(dense, group, 0) for group in dense.groups}
        last = max(
            ((name, unit) for name, units in chosen.items() for unit in units),
            key=lambda one: scores[one[0]][one[1]] / abs(scores[one[0]]).mean(),
        )
        less = {name: [unit for unit in units if (name, unit) != last] for name, units in chosen.items()}
        assert model.without(less).macs > 0.7 * whole_cost


def test_nothing_goes_at_a_ratio_of_one(dense: Anatomy) -> None:
    assert choose_units(dense, 1.0) == {}


def test_a_target_out_of_reach_says_what_can_be_reached(dense: Anatomy) -> None:
    with pytest.raises(TargetUnreachable, match=r"at least 0\.\d+ of the multiply-accumulates stay"):
        choose_units(dense, 0.0001)
    with pytest.raises(UnknownEntry, match="group-l1"):
        choose_units(dense, 0.5, "group-l3")
    with pytest.raises(ValueError, match="macs_ratio"):
        choose_units(dense, 0.0)


def test_magnitudes_are_sums_over_all_that_a_unit_owns() -> None:
    nodes = [helper.make_node("Conv", ["x", "a", "b"], ["h"]), helper.make_node("Conv", ["h", "c"], ["y"])]
    weights = {"a": floats(5, 3, 2, 2), "b": floats(5), "c": floats(2, 5, 1, 1)}
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights)))
    for power in (1, 2):
        made = CRITERIA[f"group-l{power}"].scores(found, found.groups[0], 0)
        wanted = [
            sum(
                sum(abs(float(item)) ** power for item in part.ravel())
                for part in (weights["a"][unit], weights["b"][unit], weights["c"][:, unit])
            )
            / 3
            for unit in range(5)
        ]
        np.testing.assert_allclose(made, wanted, rtol=1e-12)
    assert CRITERIA["bn-scale"].scores(found, found.groups[0], 0) is None


def test_the_last_element_of_a_part_stays() -> None:
    """Two of twenty channels go their own way: those that all groups could spare are not both spared."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Split", ["h", "s"], ["p", "q"], axis=1),
        helper.make_node("Concat", ["q", "p"], ["k"], axis=1),
        helper.make_node("Conv", ["k", "b"], ["y"]),
    ]
    weights = {"a": floats(20, 3, 1, 1), "b": floats(2, 20, 1, 1), "s": whole(2, 18)}
    weights["a"][:2] *= 1e-3
    weights["b"][:, 18:] *= 1e-3
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights)))
    chosen = choose_units(found, 0.4)
    small = cut(found, chosen)
    assert small.initializers["a"].shape[0] <= 8
    x = torch.from_numpy(floats(2, 3, 4, 4))
    with torch.no_grad():
        wanted = mask(found, chosen).module()(x)["y"]
        torch.testing.assert_close(GraphModule(small)(x)["y"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.shared
@pytest.mark.parametrize("depth", [20, 56])
@pytest.mark.parametrize("form", ["model", "model-conv-shortcut"])
def test_the_reference_resnets(depth: int, form: str) -> None:
    found = analyse(read_graph(SHARED / "models" / f"resnet{depth}-cifar10" / f"{form}.onnx"))
    chosen = choose_units(found, 0.5)
    small = cut(found, chosen)
    assert 0.47 < costs(small).macs / costs(found.graph).macs <= 0.5
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert disagreement(mask(found, chosen), small, {"image": x}) < 1e-5
    assert disagreement(mask(found, {}), small, {"image": x}) > 1e-2


def test_outputs_that_are_not_numbers_disagree() -> None:
    nodes = [helper.make_node("Log", ["x"], ["y"])]
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3)}, ["y"])))
    assert disagreement(mask(found, {}), found.graph, {"x": torch.full((1, 3), -1.0)}) == float("inf")


def test_multiples_take_no_more_than_needed() -> None:
    """A choice in multiples keeps within its bound, and no group could keep one multiple more."""
    anatomy = analyse(read_graph(stored("residual")))
    criterion = CRITERIA["group-l2"]
    scores: dict[str, Scores] = {}
    for group in anatomy.groups:
        found = criterion.scores(anatomy, group, 0)
        assert found is not None
        scores[group.name] = found
    dense = costs(anatomy.graph).macs
    model = CostModel(anatomy)
    bound = Bound(lambda gone: model.without(gone).macs, 0.7 * dense, "macs", share_kept=0, multiple=4)
    chosen = allocate(anatomy, scores, bound)
    assert costs(cut(anatomy, chosen)).macs <= 0.7 * dense
    for group in anatomy.groups:
        gone = sorted(chosen.get(group.name, []), key=lambda unit: scores[group.name][unit])
        assert (group.units - len(gone)) % 4 == 0 or not gone
        if gone:
            fewer = {**chosen, group.name: sorted(gone[:-4])}
            assert costs(cut(anatomy, fewer)).macs > 0.7 * dense


def test_scores_that_are_not_finite_are_refused() -> None:
    anatomy = analyse(read_graph(stored("residual")))
    scores = {group.name: np.ones(group.units) for group in anatomy.groups}
    scores[anatomy.groups[0].name][1] = np.nan
    with pytest.raises(ScoresInvalid, match="unit 1 of the group"):
        allocate(anatomy, scores, Bound(lambda gone: 2.0, 1.0, "macs"))
