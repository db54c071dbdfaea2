"""Every operator against ONNX Runtime, alone, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper

from compression.graphs.errors import GraphInvalid, OperatorUnknown
from compression.graphs.executor import GraphModule
from compression.graphs.graph import read_graph
from tests.engine.graphs.samples import floats, model_of, runtime, whole

X = floats(2, 6, 5, 5)
POSITIVE = np.abs(X) + 0.1
INSIDE = np.tanh(X)
SEQUENCE = floats(5, 2, 4)


def recurrent(gates: int, directions: int, bias: bool = True) -> dict[str, Any]:
    found = {"w": floats(directions, gates * 3, 4), "r": floats(directions, gates * 3, 3)}
    return found | ({"b": floats(directions, gates * 6)} if bias else {})


# operator, attributes, inputs, constants, opset
CASES: list[tuple[str, dict[str, Any], list[Any], list[Any], int]] = [
    *[(name, {}, [X], [], 20) for name in (
        "Abs", "Atan", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Identity", "Neg", "Relu",
        "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tan", "Tanh", "Elu", "Selu",
             "LeakyRelu", "HardSigmoid",
        "ThresholdedRelu", "Celu", "Shrink", "Gelu", "Mish", "Softmax", "LogSoftmax", "Hardmax",
             "GlobalAveragePool", "GlobalMaxPool",
        "LpNormalization", "MeanVarianceNormalization", "IsNaN", "IsInf", "Shape", "Size", "Flatten",
             "Transpose",
    )],
    *[(name, {}, [INSIDE], [], 20) for name in ("Acos", "Asin", "Atanh", "Sinh", "Cosh", "Asinh")],
    *[(name, {}, [POSITIVE], [], 20) for name in ("Log", "Sqrt", "Reciprocal")],
    ("Acosh", {}, [POSITIVE + 1], [], 20),
    *[(name, {}, [X], [floats(6, 1, 1)], 20) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean",
         "Sum", "PRelu",
                                                         "Greater", "Less", "GreaterOrEqual", "LessOrEqual",
                                                              "Equal")],
    ("Pow", {}, [POSITIVE], [np.float32(1.5).reshape(())], 20),
    ("Mod", {"fmod": 1}, [X], [POSITIVE[:1]], 20),
    ("Mod", {}, [whole(-7, 7, 5).reshape(3, 1)], [whole(3)], 20),
    ("Div", {}, [whole(-7, 7, 5).reshape(3, 1)], [whole(2)], 20),
    ("And", {}, [X > 0], [X[:1] > 0.5], 20),
    ("Or", {}, [X > 0], [X[:1] > 0.5], 20),
    ("Xor", {}, [X > 0], [X[:1] > 0.5], 20),
    ("Not", {}, [X > 0], [], 20),
    ("Where", {}, [X > 0, X], [floats(1, 6, 1, 1)], 20),
    ("Cast", {"to": 7}, [X * 5], [], 20),
    ("CastLike", {}, [X * 5], [whole(1)], 20),
    ("Clip", {}, [X], [np.float32(-0.5).reshape(()), np.float32(0.5).reshape(())], 20),
    ("Gelu", {"approximate": "tanh"}, [X], [], 20),
    ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]}, [X], [floats(4, 6, 3, 2),
         floats(4)], 20),
    ("Conv", {"group": 3, "auto_pad": "SAME_UPPER", "strides": [2, 2]}, [X], [floats(9, 2, 3, 3)], 20),
    ("Conv", {"auto_pad": "SAME_LOWER"}, [X], [floats(2, 6, 2, 2)], 20),
    ("Conv", {"pads": [1, 1]}, [floats(2, 4, 9)], [floats(3, 4, 3)], 20),
    ("ConvTranspose", {"strides": [2, 3], "pads": [1, 0, 0, 2], "output_padding": [1, 0]}, [X], [floats(6,
         4, 3, 4), floats(4)], 20),
    ("ConvTranspose", {"group": 2}, [X], [floats(6, 4, 2, 2)], 20),
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1], "ceil_mode": 1}, [X], [],
         20),
    ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, [X], [], 20),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, [X], [], 20),
    ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, [X], [], 20),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 0, 1], "count_include_pad": 1}, [X], [], 20),
    ("LpPool", {"kernel_shape": [2, 2], "p": 2}, [X], [], 20),
    ("BatchNormalization", {"epsilon": 1e-3}, [X], [floats(6), floats(6, seed=1), floats(6, seed=2),
         np.abs(floats(6)) + 1], 20),
    ("InstanceNormalization", {}, [X], [floats(6), floats(6, seed=1)], 20),
    ("LayerNormalization", {"axis": 2}, [X], [floats(5, 5), floats(5, 5, seed=1)], 20),
    ("LayerNormalization", {"epsilon": 1e-2}, [X], [floats(5)], 20),
    ("GroupNormalization", {"num_groups": 3}, [X], [floats(3), floats(3, seed=1)], 18),
    ("GroupNormalization", {"num_groups": 3}, [X], [floats(6), floats(6, seed=1)], 21),
    ("LRN", {"size": 3, "alpha": 0.1}, [X], [], 20),
    ("LpNormalization", {"axis": 1, "p": 1}, [X], [], 20),
    ("Softmax", {"axis": 1}, [X], [], 20),
    ("MatMul", {}, [X], [floats(6, 5, 3)], 20),
    ("MatMul", {}, [floats(2, 5)], [floats(5)], 20),
    ("Gemm", {"transA": 1, "alpha": 0.5, "beta": 2.0}, [floats(2, 5)], [floats(2, 3), floats(3)], 20),
    ("Gemm", {"transB": 1}, [floats(2, 5)], [floats(3, 5)], 20),
    ("Einsum", {"equation": "bchw,cd->bdhw"}, [X], [floats(6, 3)], 20),
    *[(name, {"keepdims": 0}, [POSITIVE], [whole(1, -1)], 20) for name in (
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
             "ReduceProd",
        "ReduceSum", "ReduceSumSquare")],
    ("ReduceMean", {"axes": [2, 3]}, [X], [], 17),
    ("ReduceSum", {"noop_with_empty_axes": 1}, [X], [], 20),
    ("ReduceMax", {}, [X], [], 20),
    ("ArgMax", {"axis": 1, "keepdims": 0}, [X], [], 20),
    ("ArgMin", {"axis": -1, "select_last_index": 1}, [np.round(X)], [], 20),
    ("CumSum", {"exclusive": 1, "reverse": 1}, [X], [whole(1)[0].reshape(())], 20),
    ("Shape", {"start": 1, "end": -1}, [X], [], 20),
    ("Reshape", {}, [X], [whole(0, -1, 5)], 20),
    ("Squeeze", {}, [X[:, :1]], [whole(1)], 20),
    ("Unsqueeze", {}, [X], [whole(-1, 1)], 20),
    ("Transpose", {"perm": [0, 2, 3, 1]}, [X], [], 20),
    ("Flatten", {"axis": 2}, [X], [], 20),
    ("Concat", {"axis": 1}, [X], [floats(2, 3, 5, 5)], 20),
    ("Slice", {}, [X], [whole(4, 0), whole(-100, 3), whole(1, 2), whole(-2, 1)], 20),
    ("Slice", {}, [X], [whole(1, -3), whole(2, 2**62), whole(1, -1)], 20),
    ("Gather", {"axis": 1}, [X], [whole(5, 0, -1).reshape(3, 1)], 20),
    ("Gather", {"axis": 1}, [X], [whole(2)[0].reshape(())], 20),
    ("GatherElements", {"axis": 1}, [floats(2, 4)], [whole(0, 3, 2, 1, 1, 1).reshape(2, 3)], 20),
    ("GatherND", {}, [X], [whole(0, 1, 1, 5).reshape(2, 2)], 20),
    ("ScatterND", {}, [X], [whole(0, 1, 1, 5).reshape(2, 2), floats(2, 5, 5)], 20),
    ("ScatterElements", {"axis": 1}, [floats(2, 4)], [whole(0, 3, 2, 1).reshape(2, 2), floats(2, 2)], 20),
    ("Expand", {}, [floats(2, 1, 3)], [whole(1, 2, 4, 1)], 20),
    ("Tile", {}, [floats(2, 3)], [whole(2, 3)], 20),
    ("Pad", {}, [X], [whole(0, 1, 0, 2, 0, 0, -1, 1), np.float32(0.7).reshape(())], 20),
    ("Pad", {"mode": "reflect"}, [X], [whole(0, 0, 1, 2, 0, 0, 3, 1)], 20),
    ("Pad", {"mode": "reflect"}, [X], [whole(0, 0, 0, 0, 0, 0, 0, 0)], 20),
    ("Pad", {"mode": "edge"}, [X], [whole(1, 2, 3, 1)], 20),
    ("ConstantOfShape", {}, [], [whole(2, 3)], 20),
    ("Range", {}, [], [whole(1)[0], whole(9)[0], whole(3)[0]], 20),
    ("Trilu", {"upper": 0}, [X], [whole(1)[0].reshape(())], 20),
    ("OneHot", {}, [whole(1, 0, -1)], [whole(4)[0].reshape(()), np.array([0.5, 2], dtype=np.float32)], 20),
    ("EyeLike", {"k": 1}, [floats(3, 4)], [], 20),
    ("DepthToSpace", {"blocksize": 2}, [floats(2, 8, 3, 3)], [], 20),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, [floats(2, 8, 3, 3)], [], 20),
    ("Col2Im", {}, [floats(2, 12, 15)], [whole(4, 6), whole(2, 2)], 18),
    ("Col2Im", {"strides": [1, 2], "pads": [1, 0, 0, 1], "dilations": [1, 2]}, [floats(2, 12, 9)],
        [whole(3, 6), whole(2, 2)], 18),
    ("SpaceToDepth", {"blocksize": 2}, [floats(2, 3, 4, 4)], [], 20),
    ("LSTM", {"hidden_size": 3}, [SEQUENCE], list(recurrent(4, 1).values()), 20),
    ("LSTM", {"hidden_size": 3, "direction": "bidirectional"}, [SEQUENCE], list(recurrent(4, 2).values()),
         20),
    ("GRU", {"hidden_size": 3, "linear_before_reset": 1, "direction": "reverse"}, [SEQUENCE],
         list(recurrent(3, 1).values()), 20),
    ("GRU", {"hidden_size": 3}, [SEQUENCE], list(recurrent(3, 1, bias=False).values()), 20),
    ("RNN", {"hidden_size": 3}, [SEQUENCE], list(recurrent(1, 1).values()), 20),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{'-'.join(case[1])}-{case[4]}")
def test_operators_compute_what_onnx_runtime_does(
    case: tuple[str, dict[str, Any], list[Any], list[Any], int],
) -> None:
    name, attributes, inputs, constants, opset = case
    fed = {f"x{place}": array for place, array in enumerate(inputs)}
    weights = {f"w{place}": np.asarray(array) for place, array in enumerate(constants)}
    names = [*fed, *weights]
    if name == "Pad" and len(names) == 2 and len(constants[0]) == 4:
        weights["axes"] = whole(2, 3)
        names = [*names, "", "axes"]
    outputs = {"LSTM": ["y", "h", "c"], "GRU": ["y", "h"], "RNN": ["y", "h"]}.get(name, ["y"])
    node = helper.make_node(name, names, outputs, name="it", **attributes)
    if name in {"OneHot", "EyeLike", "Range", "ConstantOfShape"} and not fed:
        fed = {}
    model = model_of([node], fed, outputs, weights, opset)
    check(model, fed)


def check(model: Any, fed: dict[str, Any]) -> None:
    found = (
        GraphModule(read_graph(model)).eval().run({key: torch.from_numpy(one) for key, one in fed.items()})
    )
    for wanted, made in zip(runtime(model, fed), found.values(), strict=True):
        assert tuple(made.shape) == wanted.shape
        np.testing.assert_allclose(made.detach().numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("place", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("size", [(8, 7), (3, 2)])
def test_resizing(mode: str, place: str, size: tuple[int, int]) -> None:
    fed = {"x": floats(2, 2, 4, 5)}
    extra = {"nearest_mode": "floor"} if mode == "nearest" and place == "asymmetric" else {}
    node = helper.make_node(
        "Resize", ["x", "", "", "s"], ["y"], mode=mode, coordinate_transformation_mode=place, **extra
    )
    check(model_of([node], fed, ["y"], {"s": whole(2, 2, *size)}), fed)


def test_parts_of_a_split() -> None:
    fed = {"x": floats(2, 7)}
    check(
        model_of(
            [helper.make_node("Split", ["x"], ["a", "b", "c"], axis=1, num_outputs=3)], fed, ["a", "b", "c"]
        ),
        fed,
    )
    node = helper.make_node("Split", ["x", "s"], ["a", "b"], axis=-1)
    check(model_of([node], fed, ["a", "b"], {"s": whole(5, 2)}), fed)


def test_the_largest_and_their_places() -> None:
    fed = {"x": floats(2, 7)}
    check(model_of([helper.make_node("TopK", ["x", "k"], ["v", "i"])], fed, ["v", "i"], {"k": whole(3)}), fed)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [("Scaler", {"offset": [0.5], "scale": [2.0]}), ("Normalizer", {"norm": "L2"}),
     ("LinearRegressor", {"coefficients": [1.0, 2.0, 3.0], "intercepts": [0.5]})],
)  # fmt: skip
def test_operators_of_scikit_learn(name: str, attributes: dict[str, Any]) -> None:
    fed = {"x": floats(4, 3)}
    check(
        model_of([helper.make_node(name, ["x"], ["y"], domain="ai.onnx.ml", **attributes)], fed, ["y"]), fed
    )


def test_an_unknown_operator_is_refused_by_its_name_and_its_nodes() -> None:
    model = model_of([helper.make_node("Det", ["x"], ["y"], name="odd one")], {"x": floats(1, 2, 2)}, ["y"])
    with pytest.raises(OperatorUnknown, match="Det 'odd one'"):
        GraphModule(read_graph(model))


def test_inputs_that_do_not_fit_name_the_node() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    module = GraphModule(read_graph(model_of([node], {"x": floats(2, 3)}, ["y"], {"w": floats(4, 5)})))
    with pytest.raises(GraphInvalid, match="MatMul 'product'"):
        module.run({"x": torch.zeros(2, 3)})
    with pytest.raises(GraphInvalid, match="'x' of the network is missing"):
        module.run({})


def test_a_shape_that_would_fill_the_memory_is_refused() -> None:
    node = helper.make_node("Expand", ["x", "s"], ["y"], name="huge")
    module = GraphModule(
        read_graph(model_of([node], {"x": floats(2, 1)}, ["y"], {"s": whole(2**20, 2, 2**20)}))
    )
    with pytest.raises(GraphInvalid, match="huge"):
        module.run({"x": torch.zeros(2, 1)})
