"""Whole jobs that put zeros into the matrices of exported graphs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compression import pipeline
from compression.errors import ArtifactVerificationFailed, SpecificationInvalid
from compression.export.masks import read_masks
from compression.report.schema import validate
from compression.stages.graphs.weights import WeightsJob
from tests.engine.graphs.test_graph_jobs import HOW, job
from tests.engine.jobs import Recorder, hashes, request, run_and_kill

DATA: dict[str, Any] = {
    "evaluation": {"dataset": "images", "measure": []},
    "preprocessing": HOW,
    "calibration": {"dataset": "images", "samples": 12},
}


def ran(folder: Path, work: str = "work") -> tuple[dict[str, Any], Path]:
    outcome = pipeline.run(request(folder, folder / work), Recorder())
    report = json.loads(outcome.report.read_text())
    validate(report)
    page = outcome.report_html.read_text()
    assert "Layer by layer" in page
    return report, outcome.artifact


def arrays(path: Path) -> dict[str, Any]:
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


@pytest.mark.parametrize("recipe", [
    "random", "magnitude", "global-magnitude", "lamp", "wanda", "ria", "owl", "dlp", "dsnot", "sparsegpt",
    "alps", "obs-exact",
])  # fmt: skip
def test_recipes_remove_exactly_what_is_asked(tmp_path: Path, recipe: str) -> None:
    report, artifact = ran(job(tmp_path, "shuffle", recipe=recipe, target={"sparsity": 0.6}, **DATA))
    sites = report["sites"]
    total = sum(int(np.prod(site["shape"])) for site in sites)
    zeros = total - sum(site["nonzeros"] for site in sites)
    assert zeros == round(0.6 * total)
    assert report["target"]["achieved"] == pytest.approx(zeros / total)
    assert len(sites) == 8
    assert all(site["reconstruction_error"] is not None for site in sites)
    stored = arrays(artifact / "network.onnx")
    assert total - sum(int(np.count_nonzero(stored[site["name"]])) for site in sites) == zeros
    assert report["verification"]["ok"]
    assert report["cost"]["pruned"]["macs_nonzero"] < report["cost"]["pruned"]["macs"]
    assert report["cost"]["pruned"]["parameters"] == report["cost"]["dense"]["parameters"]


def test_what_the_artifact_holds(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {
        "recipe": "wanda",
        "structure": {"granularity": "2:4", "ignore": ["head*"]},
        "target": {"sparsity": 0.5},
        **DATA,
        "evaluation": {"dataset": "images", "measure": [], "baselines": ["random", "magnitude"]},
    }
    report, artifact = ran(job(tmp_path, "residual", **wanted))
    assert [one["name"] for one in report["baselines"]] == ["magnitude", "random"]
    reasons = {one["tensor"]: one["reason"] for one in report["graph"]["whole"]}
    assert reasons["head.weight"] == "structure.ignore names it"
    assert reasons["body.0.0.weight"].startswith("2:4 does not divide the channels")
    dense, stored = arrays(tmp_path / "model" / "network.onnx"), arrays(artifact / "network.onnx")
    masks = dict(read_masks(artifact / "secateur" / "masks.safetensors"))
    assert masks.keys() == {site["name"] for site in report["sites"]}
    for name, mask in masks.items():
        kept = mask.numpy().reshape(stored[name].shape)
        assert np.array_equal(stored[name], np.where(kept, dense[name], 0))
        groups = kept.reshape(kept.shape[0], -1, 4, *kept.shape[2:])
        assert (groups.sum(2) == 2).all()
    for name, array in dense.items():
        if name not in masks:
            assert np.array_equal(array, stored[name])
    manifest = json.loads((artifact / "secateur" / "manifest.json").read_text())
    assert manifest["structure"]["granularity"] == "2:4"
    assert manifest["structure"]["masks"] == {
        "path": "secateur/masks.safetensors", "format": "secateur.masks/1",
    }  # fmt: skip
    assert "none is gone" in (artifact / "README.md").read_text()
    assert {one["name"]: one["faster"] for one in report["runtimes"]}["TensorRT"] == "depends"


def test_without_data(tmp_path: Path) -> None:
    wanted = {"recipe": "magnitude", "target": {"sparsity": 0.3}, "structure": {"granularity": "4x1"}}
    report, artifact = ran(job(tmp_path, "unet", **wanted))
    assert report["quality"]["dense"] is None
    assert report["sites"][0]["reconstruction_error"] is None
    stored = arrays(artifact / "network.onnx")
    whole = {one["tensor"] for one in report["graph"]["whole"]}
    site = next(one for one in report["sites"] if one["kind"] == "Conv" and one["sparsity"])
    assert site["name"] not in whole
    array = stored[site["name"]]
    blocks = (array != 0).reshape(-1, 4, *array.shape[1:])
    assert (blocks.all(1) | ~blocks.any(1)).all()


def test_killed_jobs_go_on_and_give_the_same_bytes(tmp_path: Path) -> None:
    folder = job(tmp_path, "residual", recipe="sparsegpt", target={"sparsity": 0.5}, **DATA)
    _, artifact = ran(folder, "whole")
    for point in ("mid_block", "mid_export"):
        work = tmp_path / point
        assert run_and_kill(folder, work, point, 1) == -signal.SIGKILL
        recorder = Recorder()
        outcome = pipeline.run(request(folder, work), recorder)
        assert not {"weights", "allocation"} & set(recorder.steps)
        assert hashes(outcome.artifact) == hashes(artifact)


def test_zeros_that_are_not_written_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = job(tmp_path, "residual", recipe="magnitude", target={"sparsity": 0.5})
    taken_up = WeightsJob._take_up

    def spoil(self: WeightsJob) -> None:
        taken_up(self)
        name = self.weights.sites[0].name
        self.masks[name] = self.masks[name] & False

    monkeypatch.setattr(WeightsJob, "_take_up", spoil)
    with pytest.raises(ArtifactVerificationFailed, match=r"should be zero are not, in body\.0\.0\.weight"):
        pipeline.run(request(folder, folder / "work"), Recorder())


@pytest.mark.parametrize(
    ("changes", "pointer", "words"),
    [
        ({"options": {"criterion": "gradient"}}, "/options/criterion", "magnitude, random, ria, wanda"),
        ({"options": {"allocation": "evolution"}}, "/options/allocation", "dlp, erk, global, lamp, owl"),
        ({"options": {"token_weight": "norm"}}, "/options/token_weight", "nothing of tokens"),
        ({"structure": {"ignore": ["encoder*"]}}, "/structure/ignore/0", "body.0.0.weight"),
        ({"structure": {"ignore": ["*"]}}, "/structure/ignore", "leave no weight"),
        ({"structure": {"granularity": "7:9"}, "target": {"sparsity": 0.2222}}, "/structure/granularity",
         "fits no matrix"),
        ({"structure": {"granularity": "2:4"}, "target": {"sparsity": 0.6}}, "/target/sparsity", "not 0.6"),
        ({"structure": {"granularity": "neuron"}}, "/structure/granularity", "offers unstructured, n:m"),
        ({"target": {"macs": 0.5}}, "/target/macs", "it offers: sparsity"),
        ({"target": {"sparsity": 0.99}}, "/target/sparsity", "options.minimum_density"),
        ({"calibration": None}, "/calibration", "looks at images"),
        ({"recipe": "gblm"}, "/recipe", "does not work on the family 'graph'"),
        ({"recipe": "group-l1", "structure": {"granularity": "unstructured"}}, "/structure/granularity",
         "'channel' alone"),
    ],
)  # fmt: skip
def test_what_is_refused_when_a_job_is_asked_for(
    tmp_path: Path, changes: dict[str, Any], pointer: str, words: str
) -> None:
    wanted = {"recipe": "wanda", "target": {"sparsity": 0.5}, **DATA, **changes}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    with pytest.raises(SpecificationInvalid) as caught:
        request(job(tmp_path, "residual", **wanted), tmp_path / "work")
    told = {fault.pointer: fault.message for fault in caught.value.errors}
    assert words in told[pointer]
