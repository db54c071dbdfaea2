"""Half of all units at random, taken out or masked: the same outputs, here and in ONNX Runtime."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from onnx import helper

from compression.graphs.costs import CostModel, costs
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.errors import CutImpossible
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph, read_graph
from compression.graphs.masking import mask
from tests.engine.graphs.exports import NAMES, stored
from tests.engine.graphs.networks import samples
from tests.engine.graphs.samples import floats, model_of, runtime, whole

Removed = dict[str, list[int]]


@functools.cache
def anatomy(name: str) -> Anatomy:
    """The anatomy of a stored network."""
    return analyse(read_graph(stored(name)))


def random_half(found: Anatomy, seed: int, share: float = 0.5) -> Removed:
    """So much of every group, at random; at least one unit of each stays."""
    draw = np.random.default_rng(seed)
    return {
        group.name: draw.permutation(group.units)[: min(round(group.units * share), group.units - 1)].tolist()
        for group in found.groups
    }


def run(graph: Graph, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return next(iter(GraphModule(graph).eval()(x).values()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_taken_out_is_what_is_masked(name: str, seed: int) -> None:
    found = anatomy(name)
    removed = random_half(found, seed)
    assert sum(len(units) for units in removed.values()) > 0
    small, masked = cut(found, removed), mask(found, removed)
    dense_macs, small_costs = costs(found.graph, seen=found.probe).macs, costs(small)
    assert small_costs.macs < 0.85 * dense_macs
    assert small_costs == CostModel(found).without(removed)
    for batch in (1, 5):
        x = samples(name.partition(".")[0], batch)
        made = run(small, x)
        with torch.no_grad():
            wanted = masked.module().eval()(x)["y"]
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(runtime(small, {"x": x.numpy()})[0], made.numpy(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(run(found.graph, x), made, atol=1e-3)


@pytest.mark.parametrize("name", ["residual", "grouped-queries", "recurrent", "recurrent.traced"])
def test_a_cut_graph_can_be_cut_again(name: str) -> None:
    once = cut(anatomy(name), random_half(anatomy(name), 2, 0.3))
    again = analyse(once)
    removed = random_half(again, 3)
    x = samples(name.partition(".")[0], 3)
    with torch.no_grad():
        wanted = mask(again, removed).module().eval()(x)["y"]
    torch.testing.assert_close(run(cut(again, removed), x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_unit_of_every_group_is_enough(name: str) -> None:
    found = anatomy(name)
    removed = {group.name: list(range(1, group.units)) for group in found.groups}
    x = samples(name.partition(".")[0], 2)
    with torch.no_grad():
        wanted = mask(found, removed).module().eval()(x)["y"]
    torch.testing.assert_close(run(cut(found, removed), x), wanted, rtol=1e-5, atol=1e-5)


def test_names_of_nodes_and_values_stay() -> None:
    found = anatomy("residual")
    small = cut(found, random_half(found, 0))
    assert [node.name for node in small.nodes] == [node.name for node in found.graph.nodes]
    assert [node.outputs for node in small.nodes] == [node.outputs for node in found.graph.nodes]
    assert list(small.initializers) == list(found.graph.initializers)
    assert small.inputs == found.graph.inputs


def test_nothing_removed_is_the_same_graph() -> None:
    found = anatomy("vit")
    assert cut(found, {}).nodes == found.graph.nodes


def test_what_cannot_be_removed_is_refused() -> None:
    found = anatomy("residual")
    group = found.groups[0]
    with pytest.raises(CutImpossible, match="keep at least one"):
        cut(found, {group.name: range(group.units)})
    with pytest.raises(CutImpossible, match=f"0 to {group.units - 1}"):
        cut(found, {group.name: [group.units]})
    with pytest.raises(CutImpossible, match="no group 'nobody'"):
        cut(found, {"nobody": [0]})


def test_a_value_between_two_computed_ones_is_masked_where_it_is_summed_over() -> None:
    """sigmoid(0) is not 0: zeroed weights alone would leave half of it in a product of two activations."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"]),
        helper.make_node("MatMul", ["x", "b"], ["q"]),
        helper.make_node("Sigmoid", ["p"], ["s"]),
        helper.make_node("Transpose", ["q"], ["t"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["s", "t"], ["y"]),
    ]
    weights = {"a": floats(4, 6), "b": floats(4, 6, seed=1)}
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4)}, ["y"], weights)))
    assert [(group.units, len(group.sites)) for group in found.groups] == [(6, 2)]
    assert found.contractions == (("s", 2),)
    removed = {found.groups[0].name: [0, 3, 4]}
    x = torch.from_numpy(floats(2, 3, 4))
    with torch.no_grad():
        wanted = mask(found, removed).module()(x)["y"]
    torch.testing.assert_close(run(cut(found, removed), x), wanted, rtol=1e-5, atol=1e-5)


def test_channels_picked_by_constant_places_are_counted_anew() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Gather", ["h", "i"], ["g"], axis=1),
        helper.make_node("Slice", ["g", "s", "e", "ax"], ["k"]),
        helper.make_node("Conv", ["k", "b"], ["y"]),
    ]
    weights = {
        "a": floats(6, 3, 1, 1), "b": floats(2, 4, 1, 1), "i": whole(4, 0, -1, 2, 4, 1),
        "s": whole(1), "e": whole(-1), "ax": whole(1),
    }  # fmt: skip
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights)))
    assert sum(group.units for group in found.groups) == 6
    x = torch.from_numpy(floats(2, 3, 4, 4))
    for removed in ([0], [0, 4], [3], [3, 5, 2]):
        chosen = {
            group.name: [
                unit for unit in range(group.units) if int(group.sites[0].places[unit, 0]) in removed
            ]
            for group in found.groups
        }
        with torch.no_grad():
            wanted = mask(found, chosen).module()(x)["y"]
        small = cut(found, chosen)
        assert small.initializers["a"].shape[0] == 6 - len(removed)
        torch.testing.assert_close(run(small, x), wanted, rtol=1e-5, atol=1e-5)


def test_a_recurrent_layer_of_which_only_the_last_state_is_read() -> None:
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "h", ""], name="lstm", hidden_size=6),
        helper.make_node("Squeeze", ["h", "zero"], ["s"]),
        helper.make_node("Gemm", ["s", "out"], ["y"]),
    ]
    weights = {
        "w": floats(1, 24, 3), "r": floats(1, 24, 6), "b": floats(1, 48), "out": floats(6, 2),
        "zero": whole(0),
    }  # fmt: skip
    model = model_of(nodes, {"x": floats(5, 2, 3)}, ["y"], weights)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "batch"
    found = analyse(read_graph(model), {"batch": 2})
    assert [group.units for group in found.groups] == [6]
    removed = {found.groups[0].name: [1, 4]}
    small = cut(found, removed)
    assert small.nodes[0].attributes["hidden_size"] == 4
    x = torch.from_numpy(floats(5, 4, 3))
    with torch.no_grad():
        wanted = mask(found, removed).module()(x)["y"]
    torch.testing.assert_close(run(small, x), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(runtime(small, {"x": x.numpy()})[0], wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_graph_of_one_fixed_batch_is_cut_too() -> None:
    model = model_of(
        [helper.make_node("Conv", ["x", "a"], ["h"]), helper.make_node("Conv", ["h", "b"], ["y"])],
        {"x": floats(4, 3, 2, 2)}, ["y"], {"a": floats(6, 3, 1, 1), "b": floats(2, 6, 1, 1)},
    )  # fmt: skip
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    found = analyse(read_graph(model))
    small = cut(found, {found.groups[0].name: [0, 5]})
    assert small.inputs == found.graph.inputs
    assert costs(small).macs == 4 * 4 * (3 * 4 + 4 * 2)


def test_weights_that_are_divided_by_their_norm() -> None:
    """Weight normalisation left in the graph: zeros in the weight would be divided by zero."""
    nodes = [
        helper.make_node("ReduceL2", ["v", "axes"], ["n"]),
        helper.make_node("Div", ["v", "n"], ["u"]),
        helper.make_node("Mul", ["u", "g"], ["w"]),
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["k"]),
        helper.make_node("Conv", ["k", "b"], ["y"]),
    ]
    weights = {
        "v": floats(6, 3, 2, 2),
        "g": floats(6, 1, 1, 1),
        "b": floats(2, 6, 1, 1),
        "axes": whole(1, 2, 3),
    }
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights)))
    assert [group.units for group in found.groups] == [6]
    assert {(site.initializer, site.role) for site in found.groups[0].sites} == {
        ("v", "producer"), ("g", "follower"), ("b", "consumer"),
    }  # fmt: skip
    removed = {found.groups[0].name: [0, 2, 5]}
    x = torch.from_numpy(floats(2, 3, 4, 4))
    with torch.no_grad():
        wanted = mask(found, removed).module()(x)["y"]
    assert wanted.isfinite().all()
    torch.testing.assert_close(run(cut(found, removed), x), wanted, rtol=1e-5, atol=1e-5)
