"""Grouped and depthwise convolutions are fitted by least squares, group by group."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from compression.graphs.batches import Batch
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.graph import read_graph
from compression.graphs.reconstruction import Fit, reconstruct
from tests.engine.graphs.samples import floats, model_of
from tests.engine.graphs.test_graph_reconstruction import run

Weights = dict[str, NDArray[np.float32]]
DAMPING = 0.02


def network(groups: int) -> tuple[Anatomy, Weights]:
    """A convolution whose channels 1 and 4 can go, one that mixes the rest into 6, a grouped one behind it,
    and a last one that reads all."""
    weights = {
        "a": floats(5, 3, 1, 1), "b": floats(6, 5, 1, 1, seed=1), "c": floats(6, 6 // groups, 3, 2, seed=2),
        "d": floats(4, 6, 1, 1, seed=3),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["k"]),
        helper.make_node("Conv", ["k", "b"], ["l"]),
        helper.make_node("Tanh", ["l"], ["m"]),
        helper.make_node("Conv", ["m", "c"], ["n"], group=groups, pads=[1, 0, 1, 1], strides=[1, 2]),
        helper.make_node("Tanh", ["n"], ["o"]),
        helper.make_node("Conv", ["o", "d"], ["y"]),
    ]
    graph = read_graph(model_of(nodes, {"x": floats(2, 3, 6, 7)}, ["y"], weights))
    return analyse(graph), weights


def pixels() -> Tensor:
    return torch.from_numpy(floats(11, 3, 6, 7, seed=9))


def windows(values: Tensor) -> Tensor:
    """Windows 3x2 of values [n, channels, 6, 7] with steps of 1 and 2: [positions, channels, 6]."""
    values = F.pad(values, (0, 1, 1, 1))
    return torch.stack([
        values[:, :, top : top + 3, left : left + 2].flatten(2)
        for top in range(6) for left in range(0, 8, 2) if left + 2 <= 8
    ], 1).flatten(0, 1)  # fmt: skip


@pytest.mark.parametrize("groups", [6, 3, 2])
def test_every_group_is_its_own_regression(groups: int) -> None:
    found, weights = network(groups)
    removed = {"a:0": [1, 4]}
    made = reconstruct(found, removed, [Batch({"x": pixels()})], Fit("least-squares", DAMPING))
    assert made.fitted == {"l": "least-squares", "n": "least-squares", "y": "least-squares"}
    w = {name: torch.from_numpy(one).double() for name, one in weights.items()}
    arrays = {name: torch.from_numpy(one).double() for name, one in made.graph.initializers.items()}
    bias = {node.value: arrays[node.inputs[2]] for node in made.graph.nodes if len(node.inputs) == 3}
    x = pixels().double()
    k = F.relu(F.conv2d(x, w["a"]))
    dense = torch.tanh(F.conv2d(k, w["b"]))
    given = torch.tanh(F.conv2d(k[:, [0, 2, 3]], arrays["b"], bias["l"]))  # as the node before was fitted
    size = 6 // groups
    for group in range(groups):
        own = slice(group * size, (group + 1) * size)
        rows, told = (windows(one[:, own]).flatten(1) for one in (given, dense))
        old = w["c"][own].flatten(1).T
        ridge = DAMPING * rows.var(0, correction=0).mean() * len(rows)
        count = rows.shape[1]
        left = torch.cat([
            torch.cat([rows, torch.ones(len(rows), 1)], 1),
            torch.cat([torch.eye(count) * ridge.sqrt(), torch.zeros(count, 1)], 1),
        ])  # fmt: skip
        best = torch.linalg.lstsq(left, torch.cat([told @ old, ridge.sqrt() * old])).solution
        np.testing.assert_allclose(arrays["c"][own].flatten(1).T, best[:-1], rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(bias["n"][own], best[-1], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("groups", [6, 2])
def test_fitting_groups_is_better_than_their_means(groups: int) -> None:
    found, _ = network(groups)
    batches = [Batch({"x": pixels()[:6]}), Batch({"x": pixels()[6:]})]
    dense = run(found.graph, batches)
    errors = {
        how: float((run(reconstruct(found, {"a:0": [0]}, batches, Fit(how)).graph, batches) - dense)
                   .square().mean())
        for how in ("bias", "least-squares")
    }  # fmt: skip
    plain = float((run(cut(found, {"a:0": [0]}), batches) - dense).square().mean())
    assert errors["least-squares"] < min(errors["bias"], plain)
