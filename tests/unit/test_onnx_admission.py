"""ONNX models that must be taken in, and what is said of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compression.errors import (
    ConfigInvalid,
    FormatNotPrunable,
    OnnxUnsupported,
    PreprocessorInvalid,
    SpecificationInvalid,
)
from compression.loading.admission import Admission, BytesSource, FileSource, admit_model, folder_sources
from compression.prunable import check_prunable
from compression.standalone import resolve_alone
from tests.conftest import SHARED
from tests.onnx_wire import external, graph, model, node, small_network, tensor, value

PARAMETERS = 6 * 27 + 6 + 6 * 54 + 12 + 24 + 4


def admitted(made: onnx.ModelProto | bytes, **others: bytes) -> Admission:
    data = made if isinstance(made, bytes) else made.SerializeToString()
    files: dict[str, FileSource] = {"model.onnx": BytesSource(data)}
    return admit_model({**files, **{f"{name}.json": BytesSource(each) for name, each in others.items()}})


def test_a_small_network() -> None:
    made = small_network()
    found = admitted(made)
    assert (found.format, found.architecture, found.family) == ("onnx", "OnnxGraph", "graph")
    assert (found.task, found.dtype, found.weights) == ("image-classification", "float32", ("model.onnx",))
    assert (found.parameters, found.bytes) == (PARAMETERS, made.ByteSize())
    assert found.inspection == {
        "kind": "graph",
        "opset": 17,
        "opsets": {"ai.onnx": 17},
        "ir_version": 8,
        "producer": "",
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 8, 8]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 4]}],
        "dynamic_batch": True,
        "nodes": 8,
        "operators": {
            "Conv": 2, "BatchNormalization": 1, "Relu": 1, "Add": 1, "GlobalAveragePool": 1, "Flatten": 1,
            "Gemm": 1,
        },
        "unknown_operators": [],
        "parameters": PARAMETERS,
        "parameters_by_operator": {"Conv": 492, "Gemm": 28, "BatchNormalization": 12},
        "tensors": 9,
        "tensor_bytes": 4 * (PARAMETERS + 12),
        "granularities": ["channel", "unstructured", "n:m", "block"],
        "sites": [
            {"name": name, "layer": layer, "shape": shape, "kind": kind, "transposed": False,
             "kernel": kernel, "groups": 1}
            for layer, (name, shape, kind, kernel) in enumerate([
                ("conv1.weight", [6, 27], "Conv", [3, 3]), ("conv2.weight", [6, 54], "Conv", [3, 3]),
                ("fc.weight", [4, 6], "Gemm", []),
            ])
        ],
        "image": (3, 8, 8),
        "classes": 4,
        "preprocessing": None,
        "task": "image-classification",
        "dtype": "float32",
        "bytes": made.ByteSize(),
        "labels": None,
    }  # fmt: skip
    json.dumps(found.to_json())


@pytest.mark.shared
def test_the_reference_networks() -> None:
    for name, layers in (("resnet20-cifar10", 19), ("resnet56-cifar10", 55)):
        found = admit_model({"model.onnx": folder_sources(SHARED / "models" / name)["model.onnx"]})
        assert found.inspection["operators"]["Conv"] == layers
        assert (found.inspection["image"], found.inspection["classes"]) == ((3, 32, 32), 10)
        assert found.inspection["dynamic_batch"]


@pytest.mark.parametrize("location", ["model.onnx.data", "model.onnx_data", "weights", "data/w.bin2"])
def test_data_in_another_file(tmp_path: Path, location: str) -> None:
    (tmp_path / location).parent.mkdir(exist_ok=True)
    small_network(tmp_path / "model.onnx", save_as_external_data=True, location=location, size_threshold=0)
    found = admit_model(folder_sources(tmp_path))
    assert found.weights == ("model.onnx", location)
    assert found.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert found.parameters == PARAMETERS


def test_data_in_one_file_for_each_tensor(tmp_path: Path) -> None:
    small_network(
        tmp_path / "model.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0
    )
    assert len(admit_model(folder_sources(tmp_path)).weights) == 12 - 2


@pytest.mark.parametrize("number", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_other_floating_types(number: int) -> None:
    size = 4 * (2 if number == TensorProto.FLOAT16 else 8)
    ends = {"inputs": [value(dtype=number)], "outputs": [value("y", dtype=number)]}
    found = admitted(model(graph(tensors=[tensor(dtype=number, raw=bytes(size))], **ends)))
    assert found.dtype == {TensorProto.FLOAT16: "float16", TensorProto.DOUBLE: "float64"}[number]
    assert found.task == "other"


@pytest.mark.parametrize("opset", range(13, 23))
def test_opsets(opset: int) -> None:
    assert admitted(model(opset=opset)).inspection["opset"] == opset


def test_weights_in_constants_and_empty_tensors() -> None:
    made = small_network()
    stored = made.graph.initializer[0]
    constant = helper.make_node("Constant", [], [stored.name], "constant", value=stored)
    del made.graph.initializer[0]
    made.graph.node.insert(0, constant)
    made.graph.initializer.append(numpy_helper.from_array(np.zeros((0,), np.float32), "none"))
    found = admitted(made)
    assert found.parameters == PARAMETERS
    assert found.inspection["parameters_by_operator"]["Conv"] == 492


def test_a_weight_of_two_nodes_counts_once() -> None:
    twice = [node(outputs=["z"]), node(inputs=["z", "w"])]
    assert admitted(model(graph(nodes=twice))).parameters == 4


def test_names_of_classes_and_preprocessing_are_kept() -> None:
    labels = {"id2label": {str(n): f"class {n}" for n in range(4)}, "architectures": ["X"], "auto": 1}
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 8, "width": 8},
        "do_resize": True,
    }
    found = admitted(
        small_network(), config=json.dumps(labels).encode(), preprocessor_config=json.dumps(settings).encode()
    )
    assert found.config == {"id2label": labels["id2label"]}
    assert json.loads(found.rewritten["config.json"]) == found.config
    assert found.dropped == ("architectures", "auto")
    assert found.inspection["preprocessing"]["size"]["height"] == 8
    assert "preprocessor_config.json" in found.rewritten


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "names 2 classes, but the model gives 4 scores"),
        ({"id2label": ["a"]}, "must map"),
        ({"id2label": {"0": "a", "2": "b", "3": "c", "4": "d"}}, 'no name for class "1"'),
        ({"id2label": {"0": 1}}, 'no name for class "0"'),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "refers to code"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(config: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigInvalid, match=words):
        admitted(small_network(), config=json.dumps(config).encode())


def test_preprocessing_that_refers_to_code() -> None:
    with pytest.raises(PreprocessorInvalid, match="refers to code"):
        admitted(small_network(), preprocessor_config=b'{"auto_map": {"x": "evil.X"}}')


def test_quantised_networks_have_nothing_to_prune() -> None:
    stored = tensor(dtype=3, raw=bytes(4))
    with pytest.raises(OnnxUnsupported, match="nothing to prune"):
        admitted(model(graph(nodes=[node("MatMulInteger")], tensors=[stored])))


def test_recipes_of_other_models_are_refused(tmp_path: Path) -> None:
    small_network(tmp_path / "model.onnx")
    wanted = {"model": "mdl_x", "recipe": "shortgpt", "target": {"sparsity": 0.5}}
    with pytest.raises(SpecificationInvalid, match="shortgpt does not work on the family 'graph'") as caught:
        resolve_alone(wanted, tmp_path, {})
    assert [fault.pointer for fault in caught.value.errors] == ["/recipe"]
    with pytest.raises(FormatNotPrunable, match="'transformers', 'onnx'"):
        check_prunable("torchscript")
    for format in ("transformers", "onnx", None):
        check_prunable(format)


def test_the_check_needs_python_alone(tmp_path: Path) -> None:
    """As `secateur convert` runs it where only the client is installed."""
    small_network(tmp_path / "model.onnx")
    script = (
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p] + [sys.argv.pop(1)]\n"
        "from compression.loading.onnx.__main__ import main\n"
        "status = main(sys.argv[1:])\n"
        "assert not sys.modules.keys() & {'torch', 'onnx', 'numpy', 'pydantic'}, 'imports too much'\n"
        "sys.exit(status)"
    )
    root = str(Path(__file__).parents[2])

    def check() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, root, str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    done = check()
    assert done.returncode == 0, done.stderr
    assert "8 nodes, 532 parameters, opset 17, free batch" in done.stdout
    (tmp_path / "model.onnx").write_bytes(
        model(graph(tensors=[tensor(raw=None, more=external(location="../x"))]))
    )
    done = check()
    assert done.returncode == 2
    assert "no plain path" in done.stderr
