"""Graphs are read and written back: names, order, types, and nothing else that an exporter left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from compression.graphs.dependencies import analyse
from compression.graphs.errors import GraphInvalid, OperatorUnknown
from compression.graphs.executor import GraphModule
from compression.graphs.graph import read_graph, write_graph
from tests.engine.graphs.exports import NAMES, stored
from tests.engine.graphs.networks import network, samples
from tests.engine.graphs.samples import floats, model_of, runtime, whole


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_computes_what_torch_does_and_what_is_written_does_in_onnx_runtime(name: str) -> None:
    plain = name.partition(".")[0]
    x = samples(plain, 5)
    graph = read_graph(stored(name))
    with torch.no_grad():
        wanted = network(plain)(x)
        found = GraphModule(graph).eval()(x)["y"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(runtime(graph, {"x": x.numpy()})[0], wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_names_order_and_types_stay() -> None:
    model = stored("residual")
    written = write_graph(read_graph(model))
    onnx.checker.check_model(written, full_check=True)
    assert [node.name for node in written.graph.node] == [node.name for node in model.graph.node]
    assert [one.name for one in written.graph.input] == ["x"]
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert written.opset_import[0].version == model.opset_import[0].version
    again = write_graph(read_graph(written))
    assert again.SerializeToString(deterministic=True) == written.SerializeToString(deterministic=True)


def test_what_exporters_note_beside_the_network_is_left_out() -> None:
    model = stored("lenet")
    secret = "/home/somebody/train.py"
    model.doc_string = model.graph.doc_string = secret
    model.producer_name = secret
    for kept in (model, model.graph, model.graph.input[0], model.graph.initializer[0], *model.graph.node):
        entry = kept.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.stack_trace", secret
    for node in model.graph.node:
        node.doc_string = secret
    model.graph.initializer[0].doc_string = secret
    assert secret.encode() not in write_graph(read_graph(model)).SerializeToString()


def test_constants_become_initializers_and_functions_are_inlined() -> None:
    body = helper.make_function(
        "local",
        "twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )
    nodes = [
        helper.make_node("Constant", [], ["c"], value_float=0.5),
        helper.make_node("Add", ["x", "c"], ["z"]),
        helper.make_node("twice", ["z"], ["y"], domain="local"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:]), functions=[body],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    graph = read_graph(model)
    assert [node.operator for node in graph.nodes] == ["Add", "Add"]
    assert graph.initializers["c"] == np.float32(0.5)
    assert GraphModule(graph)(torch.ones(2))["y"].tolist() == [3, 3]


def test_equal_vectors_that_an_exporter_stored_once_are_parted() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a", "zero"], ["h"]),
        helper.make_node("Conv", ["h", "b", "zero"], ["k"]),
        helper.make_node("Conv", ["k", "c"], ["y"]),
    ]
    weights = {
        "a": floats(4, 3, 1, 1),
        "b": floats(4, 4, 1, 1),
        "c": floats(2, 4, 1, 1),
        "zero": np.zeros(4, "f"),
    }
    graph = read_graph(model_of(nodes, {"x": floats(2, 3, 2, 2)}, ["y"], weights))
    assert [node.inputs[2:] for node in graph.nodes] == [("zero",), ("zero.2",), ()]
    assert [group.units for group in analyse(graph).groups] == [4, 4]
    nodes[1].input[1] = "c"  # a matrix that is used twice: a part of the network that is run twice
    nodes[2].input[1] = "c"
    weights["c"] = floats(4, 4, 1, 1)
    graph = read_graph(model_of(nodes, {"x": floats(2, 3, 2, 2)}, ["y"], weights))
    assert [node.inputs[2:] for node in graph.nodes] == [("zero",), ("zero",), ()]


def test_data_in_other_files_are_read_by_path(tmp_path: Path) -> None:
    model = stored("lenet")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    from_path = read_graph(tmp_path / "m.onnx")
    for name, array in read_graph(stored("lenet")).initializers.items():
        np.testing.assert_array_equal(from_path.initializers[name], array)
    with pytest.raises(GraphInvalid, match="another file"):
        read_graph(onnx.load(tmp_path / "m.onnx", load_external_data=False))


def test_what_is_not_read_is_refused() -> None:
    relu = helper.make_node("Relu", ["x"], ["y"], name="one")
    fed = {"x": floats(2, 3)}
    with pytest.raises(GraphInvalid, match="operator set 12"):
        read_graph(model_of([relu], fed, ["y"], opset=12))
    lost = model_of([relu], fed, ["y"])
    lost.graph.node[0].input[0] = "nobody"
    with pytest.raises(GraphInvalid, match="Relu 'one' reads 'nobody'"):
        read_graph(lost)
    twice = model_of([relu], fed, ["y"])
    twice.graph.node.append(helper.make_node("Relu", ["x"], ["y"], name="two"))
    with pytest.raises(GraphInvalid, match="Relu 'two' computes 'y'"):
        read_graph(twice)
    strange = model_of([relu], fed, ["y"])
    strange.graph.node[0].domain = "com.example"
    strange.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(OperatorUnknown, match=r"com.example"):
        read_graph(strange)
    branch = helper.make_graph([relu], "g", [], [helper.make_tensor_value_info("y", 1, [2, 3])])
    nested = model_of([relu], fed, ["y"])
    nested.graph.node.append(
        helper.make_node("If", ["x"], ["z"], name="choice", then_branch=branch, else_branch=branch)
    )
    with pytest.raises(OperatorUnknown, match="If 'choice'"):
        read_graph(nested)
    nowhere = model_of([relu], fed, ["y"])
    nowhere.graph.output[0].name = "z"
    with pytest.raises(GraphInvalid, match="output 'z'"):
        read_graph(nowhere)


def test_half_precision_stays() -> None:
    weight = floats(3, 2).astype(np.float16)
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"x": floats(2, 3).astype(np.float16)},
        ["y"],
        {"w": weight},
    )
    graph = read_graph(model)
    assert GraphModule(graph).to_graph().initializers["w"].dtype == np.float16
    bits = numpy_helper.to_array(onnx.helper.make_tensor("w", TensorProto.BFLOAT16, [2], [1.5, -2.0]))
    model.graph.initializer.append(numpy_helper.from_array(bits, "b"))
    kept = read_graph(model).initializers["b"]
    assert write_graph(read_graph(model)).graph.initializer[1].data_type == TensorProto.BFLOAT16
    assert kept.astype(np.float32).tolist() == [1.5, -2.0]


def test_weights_are_parameters_and_running_statistics_are_not() -> None:
    module = GraphModule(read_graph(stored("dense")))
    weights = module.named_weights()
    statistics = [node.inputs[3] for node in module.graph.nodes if node.operator == "BatchNormalization"]
    assert statistics
    assert not set(statistics) & set(weights)
    x = samples("dense", 4)
    module.train()
    before = module.initializer(statistics[0]).clone()
    module(x)["y"].square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in weights.values())
    assert not torch.equal(before, module.initializer(statistics[0]))
    stored_now = module.to_graph().initializers[statistics[0]]
    np.testing.assert_array_equal(stored_now, module.initializer(statistics[0]).numpy())


def test_values_can_be_watched_and_replaced() -> None:
    module = GraphModule(read_graph(model_of(
        [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("ReduceSum", ["h", "axes"], ["y"])],
        {"x": floats(2, 3)}, ["y"], {"axes": whole(1)},
    )))  # fmt: skip
    seen = []
    stop = module.watch("h", seen.append)
    end = module.watch("h", torch.zeros_like)
    assert module(torch.ones(2, 3))["y"].flatten().tolist() == [0, 0]
    stop()
    end()
    assert module(torch.ones(2, 3))["y"].flatten().tolist() == [3, 3]
    assert len(seen) == 1
    assert list(module.run({"x": torch.ones(1, 3)}, wanted=["h"])) == ["h"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_torch_still_exports_the_stored_networks(name: str) -> None:
    from tests.engine.graphs.exports import export

    x = samples(name.partition(".")[0], 3)
    old, new = (GraphModule(read_graph(model)).eval()(x)["y"] for model in (stored(name), export(name)))
    torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)
