"""Calibration that goes wrong: too little text, activations that overflow, inputs that do not vary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compression import pipeline
from compression.criteria.base import ActivationsNotFinite, ScoresNotFinite
from compression.errors import DatasetInsufficient
from compression.recipes import recipes
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, request, write_job
from tests.tiny_models import tiny_llama

CALIBRATED = [
    r.name
    for r in recipes
    if "update" in r.options.model_fields
    and {"calibration"} <= r.needs
    and "domain" not in r.needs
    and "llama" in r.families
    # Of whole layers, those go that overflow (`test_depth`).
    and r.granularities != ("layer",)
]
WHERE = r"(of|before) (layer 2|model\.(layers\.[01]|norm)\.[a-z_.]+|unit \d+ of (neuron|head)\.[01])"
QUICK = {"measure": [], "samples": 4}


def job(folder: Path, recipe: str, *, documents: int = 40, length: int = 32, samples: int = 12) -> Any:
    tiny_llama(folder / "model", layers=2)
    write_texts(folder / "text.jsonl", documents)
    specification = {
        "recipe": recipe,
        "target": {"sparsity": 0.5},
        "calibration": {"dataset": "dst_text", "samples": samples, "sequence_length": length},
        "evaluation": QUICK,
    }
    offered = recipes[recipe]
    widths = "comparison" not in offered.options.model_fields and offered.axes.get("allocation") != "uniform"
    if "rank" in offered.granularities or (widths and "allocation" in offered.axes):
        specification["output"] = {"layout": "packaged"}
    write_job(folder, "model", {"dst_text": "text.jsonl"}, specification)
    return request(folder, folder / "work")


def test_less_text_than_asked_for_is_used_and_said(tmp_path: Path) -> None:
    recorder = Recorder()
    outcome = pipeline.run(job(tmp_path, "wanda", documents=6, length=128, samples=64), recorder)
    report = json.loads(outcome.report.read_text())
    used = report["data"]["calibration"]
    assert 0 < used["sequences"] < 8
    assert used["tokens"] <= used["sequences"] * 128
    assert report["target"]["achieved"] == 0.5
    assert any(f"{used['sequences']} sequences" in line for line in recorder.messages), recorder.messages


@pytest.mark.parametrize("recipe", CALIBRATED)
def test_activations_that_overflow_name_the_weight(tmp_path: Path, recipe: str) -> None:
    wanted = job(tmp_path, recipe)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    # Units are scored in float64, so it takes what no float32 holds to stop them.
    whole = "comparison" not in recipes[recipe].options.model_fields
    tensors["model.layers.1.mlp.up_proj.weight"].fill_(3e38 if whole else 1e30)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises((ActivationsNotFinite, ScoresNotFinite), match=WHERE):
        pipeline.run(wanted, Recorder())


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("dsnot", "gblm", "obs-exact")]


@pytest.mark.parametrize("recipe", ["sparsegpt", "alps", *OTHERS])
def test_inputs_that_hardly_vary_are_no_obstacle(tmp_path: Path, recipe: str) -> None:
    """One short text over and over: the Hessians of all weights are singular by far."""
    wanted = job(tmp_path, recipe)
    line = json.dumps({"text": "no no no no no no no no no no no no no no no"}) + "\n"
    (tmp_path / "text.jsonl").write_text(line * 3 + json.dumps({"text": "no no"}) + "\n")
    outcome = pipeline.run(wanted, Recorder())
    report = json.loads(outcome.report.read_text())
    assert report["target"]["achieved"] == 0.5
    tensors = load_file(next(outcome.artifact.glob("*.safetensors")))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_an_empty_calibration_is_refused(tmp_path: Path) -> None:
    wanted = job(tmp_path, "wanda")
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "only one"}) + "\n")
    with pytest.raises(DatasetInsufficient, match="single document"):
        pipeline.run(wanted, Recorder())
