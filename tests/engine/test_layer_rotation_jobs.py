"""Whole jobs that slice the residual stream in bases of each norm's own: plans, files, recovery, resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from compression import pipeline
from compression.evaluation import stock
from compression.evaluation.macs import counted_macs
from tests.engine.jobs import Recorder, hashes, request, run_and_kill
from tests.engine.test_hidden_jobs import QUICK, _came_true, _job
from tests.engine.test_low_rank_jobs import FRESH
from tests.tiny_families import tiny_family
from tests.tiny_models import write_byte_tokenizer

PER_LAYER: dict[str, Any] = {"options": {"rotation": "per-layer"}, "output": {"layout": "packaged"}}


@pytest.mark.parametrize("target", [{"sparsity": 0.25}, {"parameters": 0.8}, {"macs": 0.85}, {"bytes": 0.8}])
def test_plans_come_true(target: dict[str, Any], tmp_path: Path) -> None:
    asked = _job(tmp_path, "slicegpt", target, evaluation=QUICK | {"sequence_length": 24}, **PER_LAYER)
    recorder = Recorder()
    outcome = pipeline.run(asked, recorder)
    assert recorder.stages == list(pipeline.STAGES)
    report = _came_true(asked, outcome)
    ((kind, value),) = target.items()
    cost = report["cost"]
    if kind != "sparsity":
        assert cost["pruned"][kind] <= (value + 0.02 * (kind == "bytes")) * cost["dense"][kind]
    width = report["widths"]["structures"][0]["kept"]
    tensors = load_file(outcome.artifact / "model.safetensors")
    skips = [tensor for name, tensor in tensors.items() if name.endswith("_skip.weight")]
    assert [tuple(tensor.shape) for tensor in skips] == [(width, width)] * 6
    assert sum(tensor.numel() for tensor in tensors.values()) == cost["pruned"]["parameters"]
    model = stock.load(outcome.artifact, "text-generation")
    assert sum(parameter.numel() for parameter in model.parameters()) == cost["pruned"]["parameters"]
    model.config._attn_implementation = "eager"
    batch = {"input_ids": torch.arange(24).reshape(1, 24)}
    assert counted_macs(model, batch, "text-generation") == cost["pruned"]["macs"]
    card = (outcome.artifact / "README.md").read_text()
    assert "skip_weights" in card
    assert "trust_remote_code=True" in card
    assert not (outcome.artifact / "secateur" / "units.json").exists()


@pytest.mark.parametrize("case", ["GemmaForCausalLM", "Qwen2ForCausalLM"])
def test_a_tied_head_is_untied(case: str, tmp_path: Path) -> None:
    tiny_family(tmp_path / "model", case, vocab_size=264)
    write_byte_tokenizer(tmp_path / "model", context=60)
    asked = _job(tmp_path, "slicegpt", {"sparsity": 0.5}, **PER_LAYER)
    outcome = pipeline.run(asked, Recorder())
    _came_true(asked, outcome, headers=0.04)
    assert not json.loads((outcome.artifact / "config.json").read_text())["tie_word_embeddings"]


def test_a_fresh_process_needs_nothing_but_the_folder(tmp_path: Path) -> None:
    outcome = pipeline.run(_job(tmp_path, "slicegpt", {"sparsity": 0.25}, **PER_LAYER), Recorder())
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(outcome.artifact), str(tmp_path / "logits.pt")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "refused" in done.stdout
    model = stock.load(outcome.artifact, "text-generation")
    with torch.no_grad():
        found = stock.answer(model, {"input_ids": torch.arange(3, 21).reshape(2, 9)}, "text-generation")
    assert torch.equal(torch.load(tmp_path / "logits.pt"), found)


@pytest.mark.parametrize("method", ["lora", "distillation"])
def test_recoveries_train_it_beside_baselines(method: str, tmp_path: Path) -> None:
    evaluation = QUICK | {"baselines": ["random"]}
    recovery = {"method": method, "budget": {"steps": 4}, "options": {"batch_size": 2, "held_out": 0.0}}
    asked = _job(
        tmp_path, "slicegpt", {"sparsity": 0.25}, recovery=recovery, evaluation=evaluation, **PER_LAYER
    )
    outcome = pipeline.run(asked, Recorder())
    report = _came_true(asked, outcome)
    assert len(report["baselines"]) == 1
    assert report["cost"]["recovered"]["parameters"] == report["cost"]["pruned"]["parameters"]
    before = load_file(tmp_path / "work" / "pruned" / "model.safetensors")
    after = load_file(outcome.artifact / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("_proj" in name for name in changed)
    assert any("_skip" in name for name in changed) == (method == "distillation")


@pytest.mark.parametrize(("point", "count"), [
    ("mid_block", 1), ("mid_block", 4), ("after_checkpoint_rename", 5),
])  # fmt: skip
def test_a_killed_job_ends_with_the_same_bytes(point: str, count: int, tmp_path: Path) -> None:
    asked = _job(tmp_path, "slicegpt", {"sparsity": 0.25}, **PER_LAYER)
    whole = pipeline.run(asked, Recorder())
    assert run_and_kill(tmp_path, tmp_path / "again", point, count) == -signal.SIGKILL
    resumed = pipeline.run(request(tmp_path, tmp_path / "again"), Recorder())
    assert hashes(whole.artifact) == hashes(resumed.artifact)
