"""Whole jobs on exported graphs: what comes back, whether it is what was asked for, resuming."""

from __future__ import annotations

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, shape_inference

from compression import pipeline
from compression.errors import SpecificationInvalid, TargetUnreachable, WeightsNotFinite
from compression.report.schema import validate
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.pictures import write_npz

EXPORTED = Path(__file__).parent / "exported"
QUIET: dict[str, Any] = {"measure": []}
HOW = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def macs_of(path: Path) -> int:
    """Multiply-accumulates of one sample by shapes that the onnx package infers: convolutions and matrix
    products with a stored weight."""
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    seen = shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {
        one.name: [size.dim_value for size in one.type.tensor_type.shape.dim]
        for one in (*seen.value_info, *seen.output, *seen.input)
    }
    weights = {one.name: list(one.dims) for one in seen.initializer}
    total = 0
    for node in seen.node:
        if node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]]) * math.prod(weights[node.input[1]][1:])
        elif node.op_type in ("Gemm", "MatMul"):
            weight = math.prod(weights[node.input[1]])
            total += math.prod(shapes[node.output[0]][:-1]) * weight
    return total


def parameters_of(path: Path) -> int:
    model = onnx.load(str(path))
    arrays = [numpy_helper.to_array(one) for one in model.graph.initializer]
    return sum(array.size for array in arrays if array.dtype.kind == "f" and array.ndim)


def job(folder: Path, name: str = "residual", **wanted: Any) -> Path:
    """A folder with a job on an exported graph; gives the folder."""
    (folder / "model").mkdir(parents=True)
    shutil.copyfile(EXPORTED / f"{name}.onnx", folder / "model" / "network.onnx")
    datasets = {}
    if "dataset" in wanted.get("evaluation", {}):
        images = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
        write_npz(folder / "images.npz", images, [number % 5 for number in range(40)])
        datasets = {"images": "images.npz"}
    wanted = {"recipe": "group-l1", "target": {"macs": 0.5}, "evaluation": QUIET, **wanted}
    write_job(folder, "model", datasets, wanted)
    return folder


def ran(folder: Path, work: str = "work") -> tuple[dict[str, Any], Path, Recorder]:
    """The report, the artifact and what was observed."""
    recorder = Recorder()
    outcome = pipeline.run(request(folder, folder / work), recorder)
    report = json.loads(outcome.report.read_text())
    validate(report)
    assert "Channels" in outcome.report_html.read_text()
    return report, outcome.artifact, recorder


def answers(path: Path, inputs: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    return found


def test_a_whole_job_with_images(tmp_path: Path) -> None:
    evaluation = {"dataset": "images", "baselines": ["random"]}
    report, artifact, recorder = ran(job(tmp_path, evaluation=evaluation, preprocessing=HOW))
    assert recorder.stages == list(pipeline.STAGES)
    dense = tmp_path / "model" / "network.onnx"
    result = artifact / "network.onnx"
    for place, state in ((dense, "dense"), (result, "pruned")):
        cost = report["cost"][state]
        assert (cost["macs"], cost["parameters"]) == (macs_of(place), parameters_of(place))
        assert cost["bytes"] == place.stat().st_size
    assert macs_of(result) <= 0.5 * macs_of(dense)
    stored = np.load(tmp_path / "images.npz")
    pixels = stored["images"].astype(np.float64) / 255
    pixels = ((pixels - HOW["image_mean"]) / HOW["image_std"]).transpose(0, 3, 1, 2).astype(np.float32)
    for place, state in ((dense, "dense"), (result, "pruned")):
        right = float((answers(place, pixels).argmax(-1) == stored["labels"]).mean())
        assert report["quality"][state]["accuracy"] == pytest.approx(right)
    assert [one["name"] for one in report["baselines"]] == ["random"]
    assert [case["batch"] for case in report["latency"]["cases"]] == [1, 16]
    assert report["memory"]["pruned"]["process_bytes"] > 0
    assert report["verification"]["ok"]
    assert report["graph"]["exactness"] <= 1e-5
    assert report["graph"]["uncut"][0]["reason"] == "it is the output 'y' of the network"
    assert "residual" not in (artifact / "README.md").read_text()


def test_what_the_artifact_holds(tmp_path: Path) -> None:
    report, artifact, _ = ran(job(tmp_path))
    assert report["quality"]["dense"] is None
    assert "Quality was not evaluated" in " ".join(report["notes"])
    names = {path.relative_to(artifact).as_posix() for path in artifact.rglob("*") if path.is_file()}
    assert names == {"network.onnx", "README.md", "secateur/units.json", "secateur/manifest.json"}
    before, after = onnx.load(tmp_path / "model" / "network.onnx"), onnx.load(artifact / "network.onnx")
    onnx.checker.check_model(after, full_check=True)
    assert after.opset_import[0].version == before.opset_import[0].version
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any(node.metadata_props or node.doc_string for node in after.graph.node)
    weights = {one.name: numpy_helper.to_array(one) for one in after.graph.initializer}
    dense = {one.name: numpy_helper.to_array(one) for one in before.graph.initializer}
    told = json.loads((artifact / "secateur" / "units.json").read_text())["groups"]
    assert sum(one["units"] for one in told) == report["graph"]["units"]
    first = told[0]
    taken = [
        place
        for one in told
        if (one["tensor"], one["axis"]) == (first["tensor"], 0)
        for place in one["removed"]
    ]
    kept = np.delete(dense[first["tensor"]], taken, axis=0)
    assert weights[first["tensor"]].shape[0] == kept.shape[0]
    manifest = json.loads((artifact / "secateur" / "manifest.json").read_text())
    assert manifest["format"] == "onnx"
    assert {one["path"] for one in manifest["files"]} == names - {"secateur/manifest.json"}


@pytest.mark.parametrize("name", ["option-a", "shuffle", "vit", "recurrent", "unet", "grouped-queries"])
def test_graphs_of_many_kinds(tmp_path: Path, name: str) -> None:
    report, artifact, _ = ran(job(tmp_path, name, target={"macs": 0.7}))
    assert report["target"]["ratio"] <= 0.7
    assert report["verification"]["max_abs_difference"] <= report["verification"]["tolerance"]
    assert (artifact / "network.onnx").stat().st_size < (EXPORTED / f"{name}.onnx").stat().st_size


@pytest.mark.parametrize(
    ("target", "recipe"),
    [
        ({"parameters": 0.6}, "group-l2"),
        ({"parameters": 4000}, "random-channels"),
        ({"sparsity": 0.3}, "group-l1"),
        ({"bytes": 0.6}, "group-l1"),
        ({"bytes": "20kB"}, "group-l2"),
        ({"macs": "600k"}, "random-channels"),
    ],
)
def test_targets_are_met(tmp_path: Path, target: dict[str, Any], recipe: str) -> None:
    wanted = {"target": target, "recipe": recipe, "options": {"allocation": "uniform"}}
    report, artifact, _ = ran(job(tmp_path, **wanted))
    dense, result = tmp_path / "model" / "network.onnx", artifact / "network.onnx"
    bounds = {
        "parameters": parameters_of(result) / parameters_of(dense),
        "bytes": result.stat().st_size / dense.stat().st_size,
        "macs": macs_of(result),
    }
    (kind, value), *_ = target.items()
    if kind == "sparsity":
        assert 1 - bounds["parameters"] >= value
        assert report["target"]["achieved"] == pytest.approx(1 - bounds["parameters"])
    elif isinstance(value, float):
        assert value - 0.1 < bounds[kind] <= value
    else:
        amount = {4000: 4000, "20kB": 20_000, "600k": 600_000}[value]
        assert 0.8 * amount < report["target"]["achieved"] <= amount


def test_numbers_of_channels_are_multiples(tmp_path: Path) -> None:
    wanted = {"target": {"macs": 0.7}, "options": {"channel_multiple": 4}}
    report, _, _ = ran(job(tmp_path, **wanted))
    groups = report["graph"]["groups"]
    assert any(one["kept"] < one["dense"] for one in groups)
    assert all(one["kept"] % 4 == 0 or one["kept"] == one["dense"] for one in groups)


def test_killed_jobs_go_on_and_give_the_same_bytes(tmp_path: Path) -> None:
    folder = job(tmp_path, evaluation={"dataset": "images", "measure": []}, preprocessing=HOW)
    _, artifact, _ = ran(folder, "whole")
    assert hashes(ran(folder, "again")[1]) == hashes(artifact)
    for point in ("mid_block", "mid_export"):
        work = tmp_path / point
        assert run_and_kill(folder, work, point, 1) == -signal.SIGKILL
        recorder = Recorder()
        outcome = pipeline.run(request(folder, work), recorder)
        assert "units" not in recorder.steps
        assert hashes(outcome.artifact) == hashes(artifact)
        assert json.loads(outcome.report.read_text())["reproducibility"]["resumed"] is True


def test_tensors_in_a_file_of_their_own_stay_in_one(tmp_path: Path) -> None:
    folder = job(tmp_path)
    model = onnx.load(folder / "model" / "network.onnx")
    onnx.save(
        model, folder / "model" / "network.onnx", save_as_external_data=True, location="network.onnx.data",
        size_threshold=0,
    )  # fmt: skip
    report, artifact, _ = ran(folder)
    assert {path.name for path in artifact.iterdir()} >= {"network.onnx", "network.onnx.data"}
    sizes = sum((artifact / name).stat().st_size for name in ("network.onnx", "network.onnx.data"))
    assert report["cost"]["pruned"]["bytes"] == sizes
    (tmp_path / "plain").mkdir()
    _, other, _ = ran(job(tmp_path / "plain" / "job"))
    sample = np.random.default_rng(1).standard_normal((3, 3, 16, 16)).astype(np.float32)
    assert np.array_equal(answers(artifact / "network.onnx", sample), answers(other / "network.onnx", sample))


def changed(folder: Path, change: Any) -> Path:
    place = folder / "model" / "network.onnx"
    model = onnx.load(place)
    change(model.graph)
    onnx.save(model, place)
    return folder


def test_a_fixed_batch_stays_fixed(tmp_path: Path) -> None:
    def fix(graph: onnx.GraphProto) -> None:
        for value in (graph.input[0], graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 3

    folder = job(tmp_path, evaluation={"dataset": "images", "measure": ["latency"]}, preprocessing=HOW)
    report, artifact, _ = ran(changed(folder, fix))
    after = onnx.load(artifact / "network.onnx")
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert [case["batch"] for case in report["latency"]["cases"]] == [3]
    assert report["data"]["evaluation"]["images"] == 40


def test_what_cannot_work_fails_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(TargetUnreachable, match=r"at least .* stay .*output 'y' of the network"):
        ran(job(tmp_path / "far", target={"macs": 0.001}))
    with pytest.raises(TargetUnreachable, match="as it is"):
        ran(job(tmp_path / "above", target={"macs": "900G"}))
    with pytest.raises(TargetUnreachable, match="bn-scale says nothing"):
        ran(job(tmp_path / "folded", recipe="slimming"))

    def spoil(graph: onnx.GraphProto) -> None:
        array = numpy_helper.to_array(graph.initializer[0]).copy()
        array.flat[0] = np.nan
        graph.initializer[0].CopyFrom(numpy_helper.from_array(array, graph.initializer[0].name))

    with pytest.raises(WeightsNotFinite, match="is nan"):
        ran(changed(job(tmp_path / "spoilt"), spoil))

    def strange(graph: onnx.GraphProto) -> None:
        next(node for node in graph.node if node.op_type == "Relu").op_type = "Bernoulli"

    with pytest.raises(SpecificationInvalid, match="Bernoulli"):
        ran(changed(job(tmp_path / "strange"), strange))
    with pytest.raises(SpecificationInvalid, match="nothing says how images become its input"):
        ran(job(tmp_path / "plain", evaluation={"dataset": "images"}))
