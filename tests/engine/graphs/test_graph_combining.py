"""Removed channels are taken over as linear combinations of those that stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from compression.graphs.batches import Batch
from compression.graphs.combining import combinations, combine
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.graph import Graph, read_graph
from tests.engine.graphs.exports import stored
from tests.engine.graphs.networks import samples
from tests.engine.graphs.samples import floats, model_of, runtime
from tests.engine.graphs.test_graph_reconstruction import run

X = {"x": floats(3, 3, 6, 6, seed=4)}
Weights = dict[str, NDArray[Any]]


def filters() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Filters and shifts of 6 channels, of which 1 and 4 are combinations of the others."""
    made, shift = floats(6, 3, 3, 3, seed=1).astype(np.float64), floats(6, seed=2).astype(np.float64)
    for place, shares in ((1, {0: 2.0, 3: -0.5}), (4, {2: 0.3, 5: 1.0})):
        made[place] = sum(share * made[other] for other, share in shares.items())
        shift[place] = sum(share * shift[other] for other, share in shares.items())
    return made, shift


def network(kind: str) -> Graph:
    """A convolution, linear up to its two readers; `kind` says how filters are stored: folded, or behind a
    BatchNormalization whose scaled filters are the combinations."""
    made, shift = filters()
    nodes = [helper.make_node("Conv", ["x", "a", "a0"], ["h"], pads=[1, 1, 1, 1])]
    weights: Weights = {"a": made, "a0": shift}
    if kind == "normed":
        scale, mean, variance = floats(6, seed=5), floats(6, seed=6), np.abs(floats(6, seed=7)) + 0.5
        bias, inner = floats(6, seed=8), floats(6, seed=9)
        factor = scale / np.sqrt(variance + 1e-5)
        weights = {
            "a": made / factor[:, None, None, None], "a0": inner, "s": scale,
            "t": shift - (inner - mean) * factor, "m": mean, "v": variance,
        }  # fmt: skip
        nodes.append(helper.make_node("BatchNormalization", ["h", "s", "t", "m", "v"], ["n"]))
        del bias
    value = "n" if kind == "normed" else "h"
    nodes += [
        helper.make_node("Conv", [value, "b"], ["k"]),
        helper.make_node("ReduceMean", [value, "axes"], ["p"], keepdims=0),
        helper.make_node("Gemm", ["p", "c"], ["q"], transB=1),
        helper.make_node("Tanh", ["k"], ["y"]), helper.make_node("Tanh", ["q"], ["z"]),
    ]  # fmt: skip
    arrays = {name: one.astype(np.float32) for name, one in weights.items()}
    arrays |= {"b": floats(4, 6, 1, 1), "c": floats(5, 6), "axes": np.array([2, 3])}
    return read_graph(model_of(nodes, X, ["y", "z"], arrays))


@pytest.mark.parametrize("kind", ["folded", "normed"])
def test_channels_that_are_combinations_are_not_missed(kind: str) -> None:
    """Between maker and readers all is linear, so outputs are the same; the norm counts for the filters."""
    found = analyse(network(kind))
    removed = {found.groups[0].name: [1, 4]}
    made = combine(found, removed, damping=0)
    dense, small = runtime(found.graph, X), runtime(made.graph, X)
    for one, other in zip(dense, small, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
    plain = runtime(cut(found, removed), X)
    assert max(np.abs(one - other).max() for one, other in zip(plain, dense, strict=True)) > 0.1
    assert made.fitted == {"k": "combination", "q": "combination"}
    assert made.left == {}
    assert made.graph.initializers["b"].shape == (4, 4, 1, 1)


def test_shares_are_the_least_squares_with_damping_as_rows() -> None:
    rows, gone, kept = floats(7, 12).astype(np.float64), [1, 5], np.array([0, 2, 3, 4, 6])
    shares = combinations(rows, gone, kept, 0.05)
    ridge = np.sqrt(0.05 * np.square(rows[kept]).sum() / 5)
    left = np.concatenate([rows[kept].T, ridge * np.eye(5)])
    for place, unit in enumerate(gone):
        best = np.linalg.lstsq(left, np.concatenate([rows[unit], np.zeros(5)]), rcond=None)[0]
        np.testing.assert_allclose(shares[place], best, rtol=1e-8)


def taken(name: str) -> tuple[Anatomy, dict[str, list[int]]]:
    found = analyse(read_graph(stored(name)))
    return found, {group.name: [group.units - 1] for group in found.groups}


@pytest.mark.parametrize("name", ["residual", "option-a", "lenet", "vit", "mixer", "unet", "convnext"])
def test_networks_are_cut_to_the_same_shapes(name: str) -> None:
    found, removed = taken(name)
    made, plain = combine(found, removed), cut(found, removed)
    assert [node.inputs for node in made.graph.nodes] == [node.inputs for node in plain.nodes]
    for key, array in plain.initializers.items():
        assert made.graph.initializers[key].shape == array.shape
        assert made.graph.initializers[key].dtype == array.dtype
    assert made.fitted
    x = samples(name, 3)
    np.testing.assert_allclose(
        runtime(made.graph, {"x": x.numpy()})[0], run(made.graph, [Batch({"x": x})]), atol=1e-3
    )
    assert torch.isfinite(run(made.graph, [Batch({"x": x})])).all()


@pytest.mark.parametrize(
    "name, why",
    [
        ("vit", "its inputs are heads, which do not add up"),
        ("inverted", "joins its channels otherwise than by a sum"),
        ("recurrent", "reads its units again in the next step"),
        ("resnext", "its channels are not made by filters that can be compared"),
        ("dense", "its channels are not made by filters that can be compared"),
    ],
)
def test_what_cannot_be_taken_over_is_left_and_told(name: str, why: str) -> None:
    found, removed = taken(name)
    made = combine(found, removed)
    assert any(why in one for one in made.left.values()), made.left
    assert not set(made.left) & set(made.fitted)
    plain = cut(found, removed)
    nodes = made.graph.producers()
    for value in made.left:
        weight = nodes[value].input(1)
        if weight in plain.initializers:
            np.testing.assert_array_equal(made.graph.initializers[weight], plain.initializers[weight])
