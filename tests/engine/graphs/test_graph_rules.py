"""One operator between two convolutions: its units, and that they are cut as they are masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from compression.graphs.cutting import cut
from compression.graphs.dependencies import analyse
from compression.graphs.graph import read_graph
from compression.graphs.masking import disagreement, mask
from tests.engine.graphs.samples import floats, model_of, runtime, whole

# operator, attributes, its other inputs, channels behind it, operator set, units
CASES: list[tuple[str, dict[str, Any], list[Any], int, int, int]] = [
    ("GroupNormalization", {"num_groups": 4}, [floats(4), floats(4, seed=1)], 12, 18, 4),
    ("GroupNormalization", {"num_groups": 4}, [floats(12), floats(12, seed=1)], 12, 21, 4),
    ("GroupNormalization", {"num_groups": 1}, [floats(12), floats(12, seed=1)], 12, 21, 0),
    ("InstanceNormalization", {}, [floats(12), floats(12, seed=1)], 12, 18, 12),
    ("BatchNormalization", {}, [*(floats(12, seed=one) for one in range(3)), np.ones(12, "f")], 12, 18, 12),
    ("ConvTranspose", {"group": 12}, [floats(12, 1, 2, 2), floats(12)], 12, 18, 12),
    ("ConvTranspose", {}, [floats(12, 5, 2, 2)], 5, 18, 17),
    ("ConvTranspose", {"group": 3}, [floats(12, 2, 2, 2)], 6, 18, 0),
    ("Conv", {"group": 12}, [floats(24, 1, 1, 1)], 24, 18, 12),
    ("Conv", {"group": 3}, [floats(30, 4, 1, 1)], 30, 18, 14),
    ("Conv", {"group": 6}, [floats(12, 2, 1, 1)], 12, 18, 6),
    ("Einsum", {"equation": "bchw,cd->bdhw"}, [floats(12, 5)], 5, 18, 17),
    ("Einsum", {"equation": "bchw,c->bchw"}, [floats(12)], 12, 18, 12),
    ("PRelu", {}, [floats(12, 1, 1)], 12, 18, 12),
    ("DepthToSpace", {"blocksize": 2}, [], 3, 18, 3),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [], 3, 18, 3),
    ("SpaceToDepth", {"blocksize": 2}, [], 48, 18, 12),
    ("Tile", {}, [whole(1, 2, 1, 1)], 24, 18, 12),
    ("Resize", {"mode": "linear"}, [np.zeros(0, "f"), np.array([1, 1, 2, 2], "f")], 12, 18, 12),
    ("Pad", {}, [whole(0, 2, 1, 0, 0, 3, 0, 0)], 17, 18, 12),
    ("Pad", {"mode": "reflect"}, [whole(0, 2, 1, 1, 0, 3, 1, 1)], 17, 18, 0),
    ("Transpose", {"perm": [0, 1, 3, 2]}, [], 12, 18, 12),
    ("ReduceL2", {"keepdims": 1}, [whole(2, 3)], 12, 18, 12),
    ("ReduceMean", {"keepdims": 1}, [whole(1)], 1, 18, 12),
    ("ReduceMean", {"keepdims": 1}, [whole(1, 2)], 1, 20, 12),
    ("Slice", {}, [whole(11), whole(-100), whole(1), whole(-1)], 12, 18, 0),
    ("Gather", {"axis": 1}, [whole(3, 3, 0, -2)], 4, 18, 12),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[4]}")
def test_an_operator_in_the_middle(case: tuple[str, dict[str, Any], list[Any], int, int, int]) -> None:
    name, attributes, others, width, opset, units = case
    weights = {f"w{place}": np.asarray(one) for place, one in enumerate(others)}
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["h"]),
        helper.make_node(name, ["h", *weights], ["k"], name="middle", **attributes),
        helper.make_node("Conv", ["k", "last"], ["y"]),
    ]
    weights |= {"first": floats(12, 3, 1, 1), "last": floats(2, width, 1, 1)}
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights, opset)))
    assert sum(group.units for group in found.groups) == units
    if not units:
        assert any("'middle'" in one.reason for one in found.uncut)
        return
    removed = {group.name: list(range(0, group.units - 1, 2)) for group in found.groups}
    small = cut(found, removed)
    x = floats(3, 3, 4, 4, seed=1)
    assert disagreement(mask(found, removed), small, {"x": torch.from_numpy(x)}) < 1e-5
    assert disagreement(mask(found, {}), small, {"x": torch.from_numpy(x)}) > 1e-3
    masked = mask(found, removed).module().eval()(torch.from_numpy(x))["y"].detach().numpy()
    np.testing.assert_allclose(runtime(small, {"x": x})[0], masked, rtol=1e-4, atol=1e-5)


def test_blocks_that_become_an_image_go_by_channel() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["h"]),
        helper.make_node("Reshape", ["h", "flat"], ["f"]),
        helper.make_node("Col2Im", ["f", "image", "block"], ["k"], strides=[2, 2]),
        helper.make_node("Conv", ["k", "last"], ["y"]),
    ]
    weights = {
        "first": floats(20, 3, 1, 1), "flat": whole(0, 20, -1), "image": whole(4, 8), "block": whole(2, 2),
        "last": floats(2, 5, 1, 1),
    }  # fmt: skip
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 2)}, ["y"], weights)))
    assert [group.units for group in found.groups] == [5]
    removed = {found.groups[0].name: [1, 4]}
    small = cut(found, removed)
    assert small.initializers["first"].shape[0] == 12
    x = floats(3, 3, 4, 2, seed=1)
    assert disagreement(mask(found, removed), small, {"x": torch.from_numpy(x)}) < 1e-5
    masked = mask(found, removed).module().eval()(torch.from_numpy(x))["y"].detach().numpy()
    np.testing.assert_allclose(runtime(small, {"x": x})[0], masked, rtol=1e-4, atol=1e-5)


def test_a_part_whose_end_is_counted_from_the_channels() -> None:
    """The first half of the channels, as older exporters write `x[:, : x.shape[1] // 2]`."""
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["h"]),
        helper.make_node("Shape", ["h"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["channels"]),
        helper.make_node("Div", ["channels", "two"], ["half"]),
        helper.make_node("Slice", ["h", "zero", "half", "one"], ["k"]),
        helper.make_node("Conv", ["k", "last"], ["y"]),
    ]
    weights = {
        "first": floats(12, 3, 1, 1), "last": floats(2, 6, 1, 1), "zero": whole(0),
        "one": whole(1), "two": whole(2),
    }  # fmt: skip
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["y"], weights)))
    assert sum(group.units for group in found.groups) == 12
    removed = {group.name: [0, 2, 3] for group in found.groups}
    small = cut(found, removed)
    x = floats(3, 3, 4, 4, seed=1)
    assert disagreement(mask(found, removed), small, {"x": torch.from_numpy(x)}) < 1e-5
    masked = mask(found, removed).module().eval()(torch.from_numpy(x))["y"].detach().numpy()
    np.testing.assert_allclose(runtime(small, {"x": x})[0], masked, rtol=1e-4, atol=1e-5)
