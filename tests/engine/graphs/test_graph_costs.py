"""Multiply-accumulates and parameters against torch's counter of operations and plain sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper
from torch.utils.flop_counter import FlopCounterMode

from compression.graphs.costs import costs
from compression.graphs.graph import read_graph
from tests.engine.graphs.exports import stored
from tests.engine.graphs.networks import network, samples
from tests.engine.graphs.samples import floats, model_of


@pytest.mark.parametrize(
    "name", ["residual", "option-a", "resnext", "inverted", "mixer", "convnext", "lenet", "odd-norms"]
)
def test_a_network_costs_what_torch_counts(name: str) -> None:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(name)(samples(name, 1))
    assert costs(read_graph(stored(name))).macs == counter.get_total_flops() // 2


def test_parameters_are_the_elements_of_what_is_trained() -> None:
    model = network("dense")
    assert costs(read_graph(stored("dense"))).parameters <= sum(one.numel() for one in model.parameters())
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"])]
    model = model_of(nodes, {"x": floats(2, 3)}, ["y"], {"w": floats(3, 4), "b": floats(4)})
    assert costs(read_graph(model)).parameters == 16


def test_recurrent_layers_and_sums_of_products() -> None:
    found = costs(read_graph(stored("recurrent"))).macs
    lstm, gru, head = 7 * 2 * 4 * 8 * (6 + 8), 7 * 3 * 10 * (16 + 10), 10 * 5
    assert found == lstm + gru + head
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], equation="bthd,hde->bte")]
    model = model_of(nodes, {"x": floats(2, 3, 4, 5)}, ["y"], {"w": floats(4, 5, 6)})
    assert costs(read_graph(model)).macs == 3 * 4 * 5 * 6


def test_a_product_of_weights_alone_counts_once_whatever_the_batch() -> None:
    nodes = [helper.make_node("MatMul", ["a", "b"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = model_of(nodes, {"x": floats(2, 3)}, ["y"], {"a": floats(3, 4), "b": floats(4, 5)})
    found = costs(read_graph(model))
    assert found.macs_by_node == {"w": 3 * 4 * 5, "y": 3 * 5}
    assert isinstance(found.macs, int | np.integer)
