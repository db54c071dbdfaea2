"""Whole jobs that remove hidden channels: plans come true, stock models, recovery, resuming, formats."""

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
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_llama, write_byte_tokenizer

CALIBRATION = {"dataset": "dst_text", "samples": 10, "sequence_length": 24}
QUICK = {"measure": [], "samples": 4}
LLAMA = {"layers": 3, "hidden": 48, "heads": 4, "key_value_heads": 2, "ffn": 96}


def _job(folder: Path, recipe: str, target: dict[str, Any], granularity: str = "hidden", **more: Any) -> Any:
    """The request of a job; the model is made unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        tiny_llama(folder / "model", **LLAMA)
    write_texts(folder / "text.jsonl", 60)
    specification = {
        "recipe": recipe, "target": target, "calibration": CALIBRATION, "evaluation": QUICK,
        "structure": {"granularity": granularity}, **more,
    }  # fmt: skip
    write_job(folder, "model", {"dst_text": "text.jsonl"}, specification)
    return request(folder, folder / "work")


def _came_true(asked: Any, outcome: Any, headers: float = 0.02) -> dict[str, Any]:
    """Run checks that hold for every job of hidden channels; gives the report. The headers of the files
    are a good part of the bytes of tiny models."""
    inspection = Inspection.from_json(admit_model(folder_sources(asked.model)).inspection)
    promised = plan(asked.specification, inspection)
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    found = report["cost"]["pruned"]
    for name in ("parameters", "macs"):
        assert promised["pruned"][name] == found[name], name
    assert promised["pruned"]["bytes"] == pytest.approx(found["bytes"], rel=headers)
    tensors = load_file(outcome.artifact / "model.safetensors")
    for site in promised["cut"]["sites"]:
        assert tuple(tensors[site["name"]].shape) == tuple(site["kept_shape"])
    assert report["verification"]["max_abs_difference"] <= 1e-5
    widths = {one["kind"]: one["kept"] for one in report["widths"]["structures"]}
    assert {kind: one["kept"] for kind, one in promised["cut"]["widths"].items()} == widths
    assert promised["cut"]["sparsity"] == report["widths"]["sparsity"]
    assert "hidden channels" in report["notes"][0]
    config = json.loads((outcome.artifact / "config.json").read_text())
    assert config["hidden_size"] == widths["hidden"] == promised["cut"]["shape"]["hidden"]
    assert config["head_dim"] == inspection.head_dim
    model = stock.load(outcome.artifact, "text-generation")
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, eos_token_id=None).shape == (1, 5)
    return report


@pytest.mark.parametrize("recipe", ["slicegpt", "minitron-width", "magnitude-width"])
def test_every_recipe(recipe: str, tmp_path: Path) -> None:
    asked = _job(tmp_path, recipe, {"sparsity": 0.25})
    recorder = Recorder()
    outcome = pipeline.run(asked, recorder)
    assert recorder.stages == list(pipeline.STAGES)
    report = _came_true(asked, outcome)
    assert report["target"]["achieved"] == pytest.approx(0.25, abs=0.09)
    assert report["quality"]["pruned"]["perplexity"] > 0
    assert all(0 < site["weight_error"] < 1 for site in report["sites"])
    units = outcome.artifact / "secateur" / "units.json"
    if recipe == "slicegpt":
        assert not units.exists()
    else:
        (kept,) = json.loads(units.read_text())["units"]["hidden"]
        assert kept == sorted(set(kept))
        assert len(kept) == report["widths"]["structures"][0]["kept"]


@pytest.mark.parametrize("granularity", ["neuron+hidden", "neuron+head+hidden"])
def test_together_with_neurons_and_heads(granularity: str, tmp_path: Path) -> None:
    tiny_family(tmp_path / "model", "Qwen3ForCausalLM", vocab_size=264)
    write_byte_tokenizer(tmp_path / "model", context=60)
    asked = _job(tmp_path, "minitron-width", {"parameters": 0.6}, granularity)
    report = _came_true(asked, pipeline.run(asked, Recorder()))
    assert 0.5 < report["cost"]["pruned"]["parameters"] / report["cost"]["dense"]["parameters"] <= 0.6
    assert len(report["widths"]["structures"]) == granularity.count("+") + 1


@pytest.mark.parametrize(
    "case",
    [
        "GemmaForCausalLM", "MixtralForCausalLM-tied",
        pytest.param("Qwen2MoeForCausalLM", marks=pytest.mark.slow),
        pytest.param("Qwen2ForCausalLM", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_tied_head_is_untied_where_the_stream_is_turned(case: str, tmp_path: Path) -> None:
    tiny_family(tmp_path / "model", case, vocab_size=264)
    write_byte_tokenizer(tmp_path / "model", context=60)
    asked = _job(tmp_path, "slicegpt", {"sparsity": 0.5})
    outcome = pipeline.run(asked, Recorder())
    report = _came_true(asked, outcome)
    assert report["widths"]["structures"][0]["kept"] == 16
    assert not json.loads((outcome.artifact / "config.json").read_text())["tie_word_embeddings"]


@pytest.mark.parametrize("recipe", ["slicegpt", pytest.param("minitron-width", marks=pytest.mark.slow)])
def test_the_smaller_model_recovers_beside_baselines(recipe: str, tmp_path: Path) -> None:
    evaluation = QUICK | {"baselines": ["random", "magnitude"]}
    recovery = {"method": "lora", "budget": {"steps": 4}}
    asked = _job(tmp_path, recipe, {"macs": 0.7}, recovery=recovery, evaluation=evaluation)
    report = _came_true(asked, pipeline.run(asked, Recorder()))
    assert report["recovery"]["steps"] == 4
    assert len(report["baselines"]) == 2
    assert report["cost"]["recovered"]["parameters"] == report["cost"]["pruned"]["parameters"]


def test_a_gguf_of_the_turned_model(tmp_path: Path) -> None:
    asked = _job(tmp_path, "slicegpt", {"sparsity": 0.25}, output={"formats": ["safetensors", "gguf"]})
    outcome = pipeline.run(asked, Recorder())
    assert (outcome.artifact / "model.gguf").exists()


@pytest.mark.parametrize(("recipe", "granularity", "count"), [
    ("slicegpt", "hidden", 2), ("slicegpt", "hidden", 5), ("minitron-width", "neuron+head+hidden", 8),
])  # fmt: skip
def test_a_killed_job_ends_with_the_same_bytes(
    recipe: str, granularity: str, count: int, tmp_path: Path
) -> None:
    """Killed while it measures, and while it cuts."""
    asked = _job(tmp_path, recipe, {"parameters": 0.7}, granularity)
    whole = pipeline.run(asked, Recorder())
    assert run_and_kill(tmp_path, tmp_path / "again", "mid_block", count) == -signal.SIGKILL
    resumed = pipeline.run(request(tmp_path, tmp_path / "again"), Recorder())
    assert hashes(whole.artifact) == hashes(resumed.artifact)
