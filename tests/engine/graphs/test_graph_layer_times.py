"""Shapes of layers, their measured times, and what follows for widths between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from compression.graphs.allocation import Bound, allocate
from compression.graphs.costs import CostModel, costs
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.graph import read_graph
from compression.graphs.layer_shape import LayerShape, alone
from compression.graphs.layer_shapes import LayerModel
from compression.graphs.layer_times import FINER, MOST_SHAPES, Ranges, TimeModel, TimesMissing
from compression.graphs.pruning import choose_units
from compression.stages.graphs import timer
from tests.engine.graphs.exports import stored
from tests.engine.graphs.samples import floats, model_of

NAMES = ["residual", "inverted", "shuffle", "unet", "vit", "grouped-queries", "option-a"]


def conv(groups: int, read: int, made: int, kernel: str = "3x3", size: str = "8x8") -> LayerShape:
    rest = {"kernel": kernel, "in": size, "out": size, "pads": "1x1x1x1"}
    return LayerShape("Conv", (groups, read, made), tuple(sorted(rest.items())))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_the_cut_graph(name: str) -> None:
    anatomy = analyse(read_graph(stored(name)))
    chosen = choose_units(anatomy, 0.6, share_kept=0.2)
    found = LayerModel(anatomy).shapes(chosen)
    smaller = cut(anatomy, chosen)
    again = LayerModel(analyse(smaller)).shapes({})
    assert sorted(shape.key for shape in found.values()) == sorted(shape.key for shape in again.values())
    assert LayerModel(anatomy).shapes({}) != found
    counted = costs(smaller).macs_by_node
    for value, shape in found.items():
        assert shape.macs == counted[value]
        assert LayerShape.from_key(shape.key) == shape


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_alone_gives_what_it_gives_in_its_graph(name: str) -> None:
    """The output of every layer alone, in ONNX Runtime, has as many elements as for one sample of the
    graph."""
    anatomy = analyse(read_graph(stored(name)))
    for value, shape in LayerModel(anatomy).shapes({}).items():
        node, inputs, weights = alone(shape, "layer0", "float32")
        given = [helper.make_tensor_value_info(one, 1, array.shape) for one, array in inputs.items()]
        kept = [numpy_helper.from_array(array, one) for one, array in weights.items()]
        made = [helper.make_tensor_value_info("layer0", 1, None)]
        graph = helper.make_graph([node], "alone", given, made, kept)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        output: Any = session.run(None, inputs)[0]
        first, second = (math.prod(shapes[value]) for shapes in anatomy.probe.shapes)
        assert output.size == 2 * first - second


@pytest.mark.parametrize("windows", [False, True])
def test_a_layer_of_several_samples_is_timed_with_them(windows: bool) -> None:
    """A graph that takes three samples and no other number, and one whose samples are four windows each."""
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["w"]), helper.make_node("Conv", ["w", "a"], ["h"]),
        helper.make_node("Conv", ["h", "b"], ["y"]),
    ]  # fmt: skip
    shape = np.array([-1, 3, 4, 4] if windows else [3, 3, 4, 4], dtype=np.int64)
    weights = {"s": shape, "a": floats(8, 3, 1, 1), "b": floats(2, 8, 1, 1)}
    model = model_of(nodes, {"x": floats(2, 12, 4, 4) if windows else floats(3, 3, 4, 4)}, ["y"], weights)
    if not windows:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    anatomy = analyse(read_graph(model))
    for value, one in LayerModel(anatomy).shapes({}).items():
        assert one.batch == (4 if windows else 3)
        assert one.macs == costs(anatomy.graph).macs_by_node[value]
        node, inputs, weights = alone(one, "layer0", "float32")
        assert node.input[0] in inputs
        assert inputs[node.input[0]].shape[0] == one.batch
        assert sum(array.size for array in (*inputs.values(), *weights.values())) == one.held


def test_recurrent_layers_are_named_as_not_timed() -> None:
    assert LayerModel(analyse(read_graph(stored("recurrent")))).untimed == ["GRU", "LSTM"]


def ranges() -> Ranges:
    whole = {"one": conv(1, 64, 32), "two": conv(48, 1, 1), "three": conv(1, 3, 10)}
    least = {"one": conv(1, 16, 8), "two": conv(16, 1, 1), "three": conv(1, 3, 10)}
    return Ranges.between(whole, least)


def bilinear(shape: LayerShape) -> float:
    """Linear in every width by itself."""
    groups, read, made = shape.widths
    return 1e-6 * (5 + groups + 2 * read + 3 * made + 0.1 * groups * read * made)


@pytest.mark.parametrize("fine", FINER)
def test_between_measured_widths_times_are_linear(fine: int) -> None:
    found, whole = ranges(), conv(1, 64, 32)
    table = {shape.key: bilinear(shape) for shape in found.lattice(whole, fine)}
    for widths in ((1, 16, 8), (1, 40, 8), (1, 33, 17), (1, 64, 32), (1, 57, 30)):
        shape = whole.with_widths(widths)
        assert found.seconds(shape, whole, table) == pytest.approx(bilinear(shape), rel=1e-12)
    exact = whole.with_widths((1, 40, 24))
    assert found.seconds(exact, whole, {**table, exact.key: 7.0}) == 7.0
    with pytest.raises(TimesMissing, match="Conv 3x3, 48 to 48 channels, 48 groups, 8x8"):
        found.seconds(conv(32, 1, 1), conv(48, 1, 1), table)


def test_what_is_measured_first() -> None:
    found = ranges()
    wanted = found.wanted()
    corners = found.wanted(FINER[:1])
    assert wanted[: len(corners)] == corners
    assert len(set(wanted)) == len(wanted)
    # Four corners of the first, two of the second, the third alone; what makes most multiplications first.
    assert len(corners) == 4 + 2 + 1
    assert {shape.widths for shape in corners[:4]} == {(1, 16, 8), (1, 16, 32), (1, 64, 8), (1, 64, 32)}
    measured = [shape.widths for shape in wanted if shape.macs > 20_000]
    assert all(width % 8 == 0 or width < 8 for widths in measured for width in widths)
    many = {str(one): conv(1, 256, 256 + 8 * one) for one in range(30)}
    least = {str(one): conv(1, 8, 8) for one in range(30)}
    large = Ranges.between(many, least)
    assert len(large.wanted()) <= MOST_SHAPES
    assert set(large.wanted(FINER[:1])) <= set(large.wanted())


def two_branches() -> Anatomy:
    """A layer at a large size and one at a small size, of the same widths."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], pads=[1, 1, 1, 1]), 
        helper.make_node("Relu", ["h"], ["k"]),
        helper.make_node("Conv", ["k", "b"], ["p"], strides=[4, 4]), helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "c"], ["y"]),
    ]  # fmt: skip
    weights = {"a": floats(32, 3, 3, 3), "b": floats(32, 32, 1, 1), "c": floats(4, 32, 1, 1)}
    return analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 16, 16)}, ["y"], weights)))


def timed(anatomy: Anatomy, table: Mapping[str, float], whole: float) -> TimeModel:
    layers = LayerModel(anatomy)
    gone = {group.name: list(range(group.units - 8)) for group in anatomy.groups}
    return TimeModel(layers, Ranges.between(layers.shapes({}), layers.shapes(gone)), table, whole)


@pytest.mark.parametrize("slow", ["a", "c"])
def test_a_made_up_table_drives_the_knapsack(slow: str) -> None:
    """Only layers that one weight belongs to take time: the group that it makes or reads is cut."""
    anatomy = two_branches()
    layers = LayerModel(anatomy)
    gone = {group.name: list(range(group.units - 8)) for group in anatomy.groups}
    found = Ranges.between(layers.shapes({}), layers.shapes(gone))
    weight = {"a": (3, 3), "c": (1, 1)}[slow]

    def seconds(shape: LayerShape) -> float:
        mine = shape.told("kernel") == weight and (slow == "a" or shape.widths[2] == 4)
        return 1e-6 + (1e-4 * shape.widths[1] * shape.widths[2] if mine else 0.0)

    table = {shape.key: seconds(shape) for shape in found.wanted()}
    model = timed(anatomy, table, whole=0.0)
    dense = model.seconds({})
    scores = {group.name: np.ones(group.units) for group in anatomy.groups}
    bound = Bound(model.seconds, 0.6 * dense, "seconds", multiple=8)
    chosen = allocate(anatomy, scores, bound, "knapsack", "none")
    assert list(chosen) == [{"a": "a:0", "c": "b:0"}[slow]]
    assert model.seconds(chosen) <= 0.6 * dense
    assert all((32 - len(units)) % 8 == 0 for units in chosen.values())
    macs = CostModel(anatomy)
    by_macs = Bound(lambda gone: macs.without(gone).macs, 0.6 * macs.without({}).macs, "macs", multiple=8)
    assert list(allocate(anatomy, scores, by_macs, "knapsack", "none")) == ["a:0"]


def test_what_lies_beside_layers_shrinks_with_what_they_give() -> None:
    anatomy = two_branches()
    layers = LayerModel(anatomy)
    shapes = {*layers.shapes({}).values(), *layers.shapes({"a:0": list(range(16))}).values()}
    table = {shape.key: 1e-3 for shape in shapes}
    model = timed(anatomy, table, whole=0.005)
    assert model.seconds({}) == pytest.approx(0.005)
    elements = 32 * 256 + 32 * 16 + 4 * 16
    left = (elements - 16 * 256) / elements
    assert model.seconds({"a:0": list(range(16))}) == pytest.approx(0.003 + 0.002 * left)


def test_a_process_times_kernels(tmp_path: Path) -> None:
    """Of all kinds of layers some time, more for many times the work."""
    shapes = [
        conv(1, 8, 8), conv(1, 64, 64), conv(1, 13, 7), conv(24, 1, 1),
        LayerShape("Gemm", (1, 64, 10), (("bias", "1"), ("left", ""), ("right", ""), ("stored", "w"))),
        LayerShape("MatMul", (4, 17, 8, 17), (("left", "1"), ("right", "1"), ("stored", ""))),
    ]  # fmt: skip
    request = {
        "layers": [shape.key for shape in shapes], "dtype": "float32", "threads": 1, "seconds": 5.0,
        "model": None, "inputs": None, "folder": str(tmp_path),
    }  # fmt: skip
    found = timer.measure(request)
    assert all(one is not None and 0 < one < 1 for one in found["seconds"])
    assert found["seconds"][1] > found["seconds"][0]
    assert list(tmp_path.iterdir()) == []
    late = timer.measure({**request, "seconds": -1.0})
    assert late["seconds"] == [None] * len(shapes)
