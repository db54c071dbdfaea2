"""What hangs together, and what stays and why."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from onnx import helper

from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.errors import GraphInvalid
from compression.graphs.graph import read_graph
from compression.graphs.masking import disagreement, mask
from tests.engine.graphs.exports import stored
from tests.engine.graphs.samples import floats, model_of, whole


def anatomy_of(
    nodes: list[object], weights: dict[str, np.ndarray], shape: tuple[int, ...] = (2, 3, 4, 4)
) -> Anatomy:
    return analyse(read_graph(model_of(nodes, {"x": floats(*shape)}, ["y"], weights)))


def units_by_producer(found: Anatomy) -> dict[str, list[int]]:
    """By the first producer of a group, without numbers: the units of its groups."""
    result: dict[str, list[int]] = {}
    for group in found.groups:
        result.setdefault(group.name.partition(":")[0], []).append(group.units)
    return result


def test_channels_of_a_residual_stream_go_together_through_all_that_add_to_it() -> None:
    found = analyse(read_graph(stored("residual")))
    stream = found.groups[0]
    assert stream.units == 8
    assert {site.initializer for site in stream.producers()} == {
        "body.0.0.weight", "body.1.two.0.weight", "body.2.two.0.weight",
    }  # fmt: skip
    assert {site.initializer for site in stream.sites if site.role == "consumer"} == {
        "body.1.one.0.weight", "body.2.one.0.weight", "body.3.0.weight",
    }  # fmt: skip
    assert units_by_producer(found) == {
        "body.0.0.weight": [8], "body.1.one.0.weight": [8], "body.2.one.0.weight": [8],
             "body.3.0.weight": [12],
        "body.4.one.0.weight": [12],
    }  # fmt: skip


def test_padded_shortcuts_tie_channels_at_an_offset() -> None:
    found = analyse(read_graph(stored("option-a")))
    stream = next(group for group in found.groups if group.name == "body.0.0.weight:0")
    places = {site.initializer: site.places[:, 0].tolist() for site in stream.producers()}
    assert places["body.0.0.weight"] == list(range(8))
    assert places["body.2.two.0.weight"] == list(range(4, 12))
    assert places["body.3.two.0.weight"] == list(range(8, 16))
    only_last = next(group for group in found.groups if group.name == "body.3.two.0.weight:0")
    assert only_last.sites[0].places[:, 0].tolist() == [0, 1, 2, 3, 20, 21, 22, 23]


def test_heads_are_units_with_the_queries_that_share_their_keys() -> None:
    for name in ("grouped-queries", "grouped-queries.traced"):
        found = analyse(read_graph(stored(name)))
        heads = next(group for group in found.groups if group.heads)
        assert heads.units == 3
        made = next(heads.producers())
        # queries of two heads, a key and a value, each of four channels
        assert made.places[1].tolist() == [*range(8, 16), *range(28, 32), *range(40, 44)]


def test_the_choices_of_grouped_convolutions() -> None:
    whole_groups = analyse(read_graph(stored("resnext")))
    assert units_by_producer(whole_groups) == {
        "body.0.0.weight": [8],
        "body.1.0.weight": [6],
        "body.3.0.weight": [8],
    }
    shuffled = analyse(read_graph(stored("shuffle")))
    assert shuffled.groups[0].units == 8
    assert shuffled.groups[0].sites[0].places[2].tolist() == [2, 10, 18]


def test_what_is_normalised_over_stays_and_says_so() -> None:
    found = analyse(read_graph(stored("vit")))
    assert [group.units for group in found.groups] == [4, 24]
    reasons = {one.initializer: one.reason for one in found.uncut}
    assert reasons["stem.weight"].startswith("LayerNormalization")
    assert "output 'y' of the network" in reasons["head.weight"]
    assert all(one.channels > 0 for one in found.uncut)


def test_an_axis_that_an_unfollowed_operator_reads_stays() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], name="first"),
        helper.make_node("ScatterND", ["h", "i", "u"], ["k"], name="odd"),
        helper.make_node("Conv", ["k", "b"], ["y"]),
    ]
    weights = {
        "a": floats(5, 3, 1, 1),
        "b": floats(2, 5, 1, 1),
        "i": whole(0, 1).reshape(1, 2),
        "u": floats(1, 4, 4),
    }
    found = anatomy_of(nodes, weights)
    assert found.groups == ()
    assert "ScatterND 'odd' is not followed" in {one.reason for one in found.uncut}


def test_sizes_that_enter_the_arithmetic_keep_their_axis() -> None:
    """A network that divides by how many channels it has is another one with fewer of them."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Shape", ["h"], ["s"], start=1, end=2),
        helper.make_node("Cast", ["s"], ["f"], to=1, name="count"),
        helper.make_node("Div", ["h", "f"], ["k"]),
        helper.make_node("Conv", ["k", "b"], ["y"]),
    ]
    found = anatomy_of(nodes, {"a": floats(5, 3, 1, 1), "b": floats(2, 5, 1, 1)})
    assert found.groups == ()
    assert "Cast 'count' computes with its size" in {one.reason for one in found.uncut}


@pytest.mark.parametrize(
    ("operator", "attributes", "free"),
    [("Softmax", {"axis": 1}, False), ("Softmax", {"axis": 2}, True), ("ReduceMean", {"axes": [1]}, True),
     ("ReduceMean", {"axes": [2]}, True), ("LRN", {"size": 3}, False), ("MeanVarianceNormalization",
          {"axes": [1]}, False),
     ("LpNormalization", {"axis": 1}, False), ("Sigmoid", {}, True), ("Identity", {}, True)],
)  # fmt: skip
def test_operators_along_channels(operator: str, attributes: dict[str, object], free: bool) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node(operator, ["h"], ["k"], **attributes),
        helper.make_node("Conv", ["h", "b"], ["z"]),
        helper.make_node("ReduceMax", ["k"], ["m"], keepdims=1, axes=[2, 3]),
        helper.make_node("ReduceSum", ["m", "one"], ["r"], keepdims=1),
        helper.make_node("Add", ["z", "r"], ["y"]),
    ]
    weights = {"a": floats(5, 3, 1, 1), "b": floats(2, 5, 1, 1), "one": whole(1)}
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights, opset=17)))
    assert bool(found.groups) == free


@pytest.mark.parametrize(
    ("square", "inputs"), [("Mul", ["h", "h"]), ("Pow", ["h", "two"]), ("Mul", ["h", "two"])]
)
def test_a_mean_of_squares_is_a_norm_and_keeps_its_axis(square: str, inputs: list[str]) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node(square, inputs, ["s"]),
        helper.make_node("ReduceMean", ["s", "one"], ["m"], keepdims=1, name="variance"),
        helper.make_node("Div", ["h", "m"], ["k"]),
        helper.make_node("Conv", ["k", "b"], ["y"]),
    ]
    weights = {"a": floats(5, 3, 1, 1), "b": floats(2, 5, 1, 1), "one": whole(1), "two": np.array(2, "f")}
    found = anatomy_of(nodes, weights)
    assert bool(found.groups) == ("two" in inputs and square == "Mul")
    if not found.groups:
        assert "ReduceMean 'variance' is the mean of squares, as of a norm over it" in {
            one.reason for one in found.uncut
        }


@pytest.mark.parametrize(
    ("before", "free"),
    [(["Relu"], True), (["Relu", "Neg"], False), (["Sigmoid", "MaxPool"], True), (["Tanh"], False)],
)
def test_a_maximum_of_what_is_never_negative_is_as_it_is_with_zeros(before: list[str], free: bool) -> None:
    nodes, value = [helper.make_node("Conv", ["x", "a"], ["h"])], "h"
    for place, operator in enumerate(before):
        given = {"kernel_shape": [1, 1]} if operator == "MaxPool" else {}
        nodes.append(helper.make_node(operator, [value], [f"v{place}"], **given))
        value = f"v{place}"
    nodes.append(helper.make_node("ReduceMax", [value, "one"], ["y"], keepdims=1))
    weights = {"a": floats(7, 3, 1, 1), "one": whole(1)}
    found = anatomy_of(nodes, weights)
    assert bool(found.groups) == free
    if free:
        removed = {found.groups[0].name: [0, 2, 3, 6]}
        x = {"x": torch.from_numpy(floats(3, 3, 4, 4))}
        assert disagreement(mask(found, removed), cut(found, removed), x) < 1e-6


def test_a_long_graph_takes_time_in_its_length() -> None:
    def chain(length: int) -> Anatomy:
        nodes, value = [helper.make_node("Conv", ["x", "w"], ["v0"])], "v0"
        for place in range(1, length):
            name = f"v{place}"
            kind = [("Conv", ["s"]), ("Relu", []), ("Add", ["v0"])][place % 3]
            nodes.append(helper.make_node(kind[0], [value, *kind[1]], [name]))
            value = name
        nodes.append(helper.make_node("Identity", [value], ["y"]))
        weights = {"w": floats(8, 3, 1, 1), "s": floats(8, 8, 1, 1) * 0.01}
        return anatomy_of(nodes, weights, (2, 3, 2, 2))

    times = []
    for length in (500, 2000):
        start = time.process_time()
        chain(length)
        times.append(time.process_time() - start)
    assert times[1] < 12 * times[0] + 0.5


def test_sizes_that_nothing_says_are_asked_for() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": floats(2, 3, 4)}, ["y"])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "length"
    with pytest.raises(GraphInvalid, match="length"):
        analyse(read_graph(model))
    assert analyse(read_graph(model), {"length": 7}).probe.shape("y") == (2, 3, 7)
