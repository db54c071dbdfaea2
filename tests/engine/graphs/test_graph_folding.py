"""Norms over weights are computed once; what they normalise can be cut then."""

from __future__ import annotations

import numpy as np
import torch
from onnx import ModelProto, helper

from compression.graphs.cutting import cut
from compression.graphs.dependencies import analyse
from compression.graphs.folding import fold_norms
from compression.graphs.graph import read_graph
from compression.graphs.masking import disagreement, mask
from tests.engine.graphs.samples import floats, model_of, runtime, whole


def standardised() -> ModelProto:
    """Two convolutions; the weight of the second is standardised over all but its outputs."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("ReduceMean", ["w", "axes"], ["mean"]),
        helper.make_node("Sub", ["w", "mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squares"]),
        helper.make_node("ReduceMean", ["squares", "axes"], ["variance"]),
        helper.make_node("Sqrt", ["variance"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["standard"]),
        helper.make_node("Conv", ["h", "standard"], ["k"]),
        helper.make_node("Conv", ["k", "b"], ["y"]),
    ]
    weights = {
        "a": floats(7, 3, 1, 1), "w": floats(9, 7, 1, 1), "axes": whole(1, 2, 3), "b": floats(2, 9, 1, 1),
    }  # fmt: skip
    return model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights)


def test_a_standardised_weight_becomes_an_initializer_and_is_cut() -> None:
    model = standardised()
    assert sum(group.units for group in analyse(read_graph(model)).groups) == 9
    graph = fold_norms(read_graph(model))
    assert [node.operator for node in graph.nodes] == ["Conv"] * 3
    assert set(graph.initializers) == {"a", "standard", "b"}
    wide = floats(9, 7, 1, 1).astype(np.float64)
    centred = wide - wide.mean((1, 2, 3), keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(graph.initializers["standard"], wanted, rtol=1e-5, atol=1e-6)
    x = floats(3, 3, 4, 4, seed=4)
    np.testing.assert_allclose(runtime(graph, {"x": x})[0], runtime(model, {"x": x})[0], rtol=1e-4, atol=1e-5)
    found = analyse(graph)
    assert sum(group.units for group in found.groups) == 16
    removed = {group.name: [0, 2, 5] for group in found.groups}
    assert disagreement(mask(found, removed), cut(found, removed), {"x": torch.from_numpy(x)}) < 1e-5


def test_weights_that_are_only_moved_or_scaled_stay_as_they_are() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Mul", ["t", "scale"], ["m"]),
        helper.make_node("MatMul", ["x", "m"], ["h"]),
        helper.make_node("ReduceMean", ["h", "axes"], ["y"]),
    ]
    weights = {"w": floats(5, 6), "scale": floats(1), "axes": whole(1)}
    graph = read_graph(model_of(nodes, {"x": floats(2, 6)}, ["y"], weights))
    assert fold_norms(graph) is graph


def test_a_norm_that_is_an_output_stays() -> None:
    nodes = [helper.make_node("ReduceMean", ["w", "axes"], ["y"]), helper.make_node("Neg", ["x"], ["z"])]
    model = model_of(nodes, {"x": floats(2, 6)}, ["y", "z"], {"w": floats(5, 6), "axes": whole(1)})
    graph = read_graph(model)
    assert fold_norms(graph) is graph
