"""What stands between a cut graph and its publication, and what the gateway believes of operators."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import save_file

from compression.export.files import file_entry
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.graph import read_graph
from compression.graphs.operators.table import TABLE
from compression.graphs.probe import sample_inputs
from compression.graphs.pruning import choose_units
from compression.loading.onnx.operators import KNOWN, KNOWN_OF_TABLES
from compression.stages.graphs import runtime
from compression.stages.graphs.check import CutInexact, check_exact, free_batch
from compression.stages.graphs.network import Network

EXPORTED = Path(__file__).parent / "exported"
TOLD = EXPORTED / "residual.onnx"


@pytest.fixture(scope="module")
def anatomy() -> Anatomy:
    return analyse(read_graph(TOLD))


def test_a_cut_that_computes_something_else_is_refused(anatomy: Anatomy) -> None:
    units, others = (choose_units(anatomy, 0.6, "random", seed=seed) for seed in (0, 1))
    inputs = sample_inputs(anatomy.graph, 3, {})
    assert check_exact(anatomy, units, cut(anatomy, units), inputs, "float32") <= 1e-5
    with pytest.raises(CutInexact, match="nothing is published"):
        check_exact(anatomy, units, cut(anatomy, others), inputs, "float32")


def test_the_gateway_knows_the_operators_of_the_engine() -> None:
    """`Constant` nodes become initializers, so no table has them."""
    names = {name if isinstance(name, tuple) else ("", name) for name in TABLE}
    assert {name for domain, name in names if not domain} == KNOWN - {"Constant"}
    assert {name for domain, name in names if domain} == KNOWN_OF_TABLES


def artifact(folder: Path) -> dict[str, Any]:
    """An artifact and a request to verify it, whose expected outputs are the file's own."""
    (folder / "secateur").mkdir(parents=True)
    shutil.copyfile(TOLD, folder / "model.onnx")
    files = [file_entry(folder, folder / "model.onnx")]
    (folder / "secateur" / "manifest.json").write_text(json.dumps({"files": files}))
    session = runtime.open_session(folder / "model.onnx", 1)
    inputs = {"x": np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)}
    outputs = runtime.run(session, inputs)
    save_file({"in/x": inputs["x"], "out/y": outputs["y"]}, folder.parent / "expected.safetensors")
    return {
        "folder": str(folder),
        "file": "model.onnx",
        "inputs": str(folder.parent / "expected.safetensors"),
        "threads": 1,
        "free_batch": True,
    }


def test_a_file_that_was_changed_is_found(tmp_path: Path) -> None:
    request = artifact(tmp_path / "artifact")
    assert runtime.verify(request)["faults"] == []
    place = tmp_path / "artifact" / "model.onnx"
    model = onnx.load(place)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    onnx.save(model, place)
    faults = runtime.verify(request)["faults"]
    assert "does not have the sha256" in faults[0]
    assert "differ by" in faults[1]


def test_outputs_are_compared_by_their_kind() -> None:
    one = {"y": np.array([1.0, 2.0], np.float32)}
    assert runtime.compare(one, one) == (0.0, pytest.approx(2e-4))
    assert runtime.compare({"y": one["y"][:1]}, one)[0] == float("inf")
    assert runtime.compare({"z": one["y"]}, one)[0] == float("inf")
    assert runtime.compare({"y": np.array([1.0, np.nan], np.float32)}, one)[0] == float("inf")
    whole = {"y": np.array([1, 2])}
    assert runtime.compare(whole, whole)[0] == 0.0
    assert runtime.compare({"y": np.array([1, 3])}, whole)[0] == float("inf")
    narrow = {"y": np.array([100.0], np.float16)}
    assert runtime.compare(narrow, narrow)[1] == pytest.approx(1.0)


def test_batches_of_a_fixed_size_give_the_same_scores(anatomy: Anatomy) -> None:
    model = onnx.load(TOLD)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    fixed = analyse(read_graph(model))
    assert free_batch(anatomy)
    assert not free_batch(fixed)
    pixels = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    batches = [{"pixel_values": pixels[:5]}, {"pixel_values": pixels[5:]}]
    found, wanted = (list(Network(one.graph).outputs(batches)) for one in (fixed, anatomy))
    assert [len(part) for part in found] == [5, 2]
    torch.testing.assert_close(torch.cat(found), torch.cat(wanted), rtol=1e-5, atol=1e-6)
