"""Whole jobs that remove neurons and heads: plans come true, stock models, recovery, resuming."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compression import pipeline
from compression.anatomy import Inspection
from compression.anatomy.plan import plan
from compression.evaluation import stock
from compression.loading.admission import admit_model, folder_sources
from compression.report import schema
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.pictures import learnt_model, pictures, write_npz
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_bert, tiny_llama, write_byte_tokenizer

CALIBRATION = {"dataset": "dst_text", "samples": 10, "sequence_length": 24}
QUICK = {"measure": [], "samples": 4}
LLAMA = {"layers": 3, "hidden": 48, "heads": 8, "key_value_heads": 4, "ffn": 96}


def _job(folder: Path, recipe: str, target: dict[str, Any], **more: Any) -> Any:
    """The request of a job; the model is made unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        tiny_llama(folder / "model", **LLAMA)
    write_texts(folder / "text.jsonl", 60, more.pop("labels", None))
    specification = {
        "recipe": recipe, "target": target, "calibration": CALIBRATION, "evaluation": QUICK, **more
    }  # fmt: skip
    write_job(folder, "model", {"dst_text": "text.jsonl"}, specification)
    return request(folder, folder / "work")


def _came_true(asked: Any, outcome: Any) -> dict[str, Any]:
    """Run checks that hold for every job of structures; gives the report."""
    inspection = Inspection.from_json(admit_model(folder_sources(asked.model)).inspection)
    promised = plan(asked.specification, inspection)
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    found = report["cost"]["pruned"]
    for name in ("parameters", "macs"):
        assert promised["pruned"][name] == found[name], name
        assert promised["dense"][name] == report["cost"]["dense"][name]
    assert promised["pruned"]["bytes"] == pytest.approx(found["bytes"], rel=0.02)
    tensors = load_file(outcome.artifact / "model.safetensors")
    for site in promised["cut"]["sites"]:
        shape = tuple(tensors[site["name"]].shape)
        assert sorted(shape) == sorted(site["kept_shape"])
    assert report["verification"]["max_abs_difference"] <= 1e-5
    widths = {one["kind"]: one["kept"] for one in report["widths"]["structures"]}
    assert {kind: one["kept"] for kind, one in promised["cut"]["widths"].items()} == widths
    assert promised["cut"]["sparsity"] == report["widths"]["sparsity"]
    assert "gone" in report["notes"][0]
    units = json.loads((outcome.artifact / "secateur" / "units.json").read_text())["units"]
    changed = {
        one["kind"]: one["kept"] for one in report["widths"]["structures"] if one["kept"] < one["dense"]
    }
    assert units.keys() == changed.keys()
    for kind, layers in units.items():
        assert len(layers) == inspection.layers
        assert all(kept == sorted(set(kept)) and len(kept) == changed[kind] for kept in layers)
    return report


RECIPES = ("flap", "vbp", "minitron-width", "llm-pruner", "ziplm", "fisher-heads")


# The others differ by their criterion, which has tests of its own.
NORMAL = "llm-pruner"


@pytest.mark.parametrize(
    "name", [name if name == NORMAL else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe(name: str, tmp_path: Path) -> None:
    asked = _job(tmp_path, name, {"sparsity": 0.5})
    recorder = Recorder()
    outcome = pipeline.run(asked, recorder)
    assert recorder.stages == list(pipeline.STAGES)
    report = _came_true(asked, outcome)
    assert report["target"]["achieved"] == pytest.approx(0.5, abs=0.04)
    assert report["quality"]["pruned"]["perplexity"] > 0
    config = json.loads((outcome.artifact / "config.json").read_text())
    assert config["intermediate_size"] == 48
    assert config["num_key_value_heads"] == (4 if name == "vbp" else 2)
    model = stock.load(outcome.artifact, "text-generation")
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, eos_token_id=None).shape == (1, 5)


@pytest.mark.parametrize("case", ["BertModel", "GPT2LMHeadModel"])
def test_families_without_head_dim_lose_neurons(case: str, tmp_path: Path) -> None:
    tiny_family(tmp_path / "model", case, vocab_size=264)
    write_byte_tokenizer(tmp_path / "model", bert=case == "BertModel", context=60)
    asked = _job(tmp_path, "flap", {"sparsity": 0.4})
    assert asked.specification.structure.granularity == "neuron"
    report = _came_true(asked, pipeline.run(asked, Recorder()))
    assert report["target"]["achieved"] == pytest.approx(0.4, abs=0.08)


def test_a_model_of_images_loses_neurons(tmp_path: Path) -> None:
    """VBP on a ViT that has learnt: the biases take up the means, and most answers stay."""
    learnt_model(tmp_path / "model", "ViTForImageClassification")
    write_npz(tmp_path / "a.npz", *pictures(96))
    calibration = {"dataset": "dst_a", "samples": 24}
    specification = {
        "recipe": "vbp", "target": {"sparsity": 0.4}, "calibration": calibration,
        "evaluation": {"measure": []},
    }  # fmt: skip
    write_job(tmp_path, "model", {"dst_a": "a.npz"}, specification)
    asked = request(tmp_path, tmp_path / "work")
    report = _came_true(asked, pipeline.run(asked, Recorder()))
    assert report["quality"]["pruned"]["accuracy"] >= 0.6


@pytest.mark.parametrize("method", ["lora", pytest.param("distillation", marks=pytest.mark.slow)])
def test_the_smaller_model_recovers(method: str, tmp_path: Path) -> None:
    recovery = {"method": method, "budget": {"steps": 4}}
    asked = _job(tmp_path, "minitron-width", {"macs": 0.7}, recovery=recovery)
    outcome = pipeline.run(asked, Recorder())
    report = _came_true(asked, outcome)
    assert report["recovery"]["steps"] == 4
    assert report["cost"]["recovered"]["parameters"] == report["cost"]["pruned"]["parameters"]
    assert stock.load(outcome.artifact, "text-generation").config.intermediate_size < 96


def test_a_classifier_with_baselines_and_least_squares(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "model", labels=["neg", "pos"])
    evaluation = QUICK | {"baselines": ["random", "magnitude"]}
    options = {"update": ["least-squares", "bias-compensation"], "sequential": True}
    asked = _job(
        tmp_path, "vbp", {"sparsity": 0.5}, evaluation=evaluation, options=options, labels=["neg", "pos"]
    )  # fmt: skip
    outcome = pipeline.run(asked, Recorder())
    report = _came_true(asked, outcome)
    assert len(report["baselines"]) == 2
    errors = [site["reconstruction_error"] for site in report["sites"] if "output.dense" in site["name"]]
    assert any(error is not None for error in errors)


def test_a_killed_job_ends_with_the_same_bytes(tmp_path: Path) -> None:
    options = {"sequential": True, "update": ["least-squares"]}
    asked = _job(tmp_path, "flap", {"sparsity": 0.5}, options=options)
    whole = pipeline.run(asked, Recorder())
    assert run_and_kill(tmp_path, tmp_path / "again", "mid_block", 2) == -signal.SIGKILL
    resumed = pipeline.run(request(tmp_path, tmp_path / "again"), Recorder())
    assert hashes(whole.artifact) == hashes(resumed.artifact)
