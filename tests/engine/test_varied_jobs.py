"""Whole jobs whose layers keep numbers of their own: padded or packaged, recovered, resumed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compression import pipeline
from compression.evaluation import stock
from compression.report import schema
from tests.engine.jobs import Recorder, hashes, request, run_and_kill
from tests.engine.test_width_jobs import _job


def test_padded_with_recovery_and_a_baseline(tmp_path: Path) -> None:
    asked = _job(
        tmp_path,
        "flap",
        {"sparsity": 0.4},
        options={"allocation": "standardized", "neuron_multiple": 1},
        output={"layout": "padded"},
        evaluation={"measure": [], "samples": 4, "baselines": ["random"]},
        recovery={"method": "lora", "budget": {"steps": 4}, "options": {"batch_size": 2}},
    )
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    assert report["target"]["achieved"] == pytest.approx(0.4, abs=0.02)
    assert report["target"]["achieved"] >= 0.4 - 1e-9
    config = json.loads((outcome.artifact / "config.json").read_text())
    tensors = load_file(outcome.artifact / "model.safetensors")
    for one in report["widths"]["structures"]:
        assert len(one["layers"]) == 3
        assert max(one["layers"]) <= one["kept"]
    neurons, heads = report["widths"]["structures"]
    assert config["intermediate_size"] == neurons["kept"] == max(neurons["layers"])
    assert config["num_key_value_heads"] == heads["kept"]
    for layer, (kept, groups) in enumerate(zip(neurons["layers"], heads["layers"], strict=True)):
        down = tensors[f"model.layers.{layer}.mlp.down_proj.weight"]
        assert (down[:, :kept] != 0).any(0).all()
        assert not down[:, kept:].any()
        query = tensors[f"model.layers.{layer}.self_attn.q_proj.weight"]
        assert (query[: groups * 12] != 0).any(1).all()
        assert not query[groups * 12 :].any()
    assert [one["name"] for one in report["baselines"]] == ["random"]
    assert report["verification"]["max_abs_difference"] <= 1e-5
    assert "one width" in (outcome.artifact / "README.md").read_text()
    stock.load(outcome.artifact, "text-generation")


def test_packaged_and_killed_in_its_search_ends_with_the_same_bytes(tmp_path: Path) -> None:
    asked = _job(
        tmp_path,
        "ziplm",
        {"macs": 0.7},
        options={
            "allocation": "evolution",
            "neuron_multiple": 4,
            "search_generations": 2,
            "search_offspring": 4,
            "search_sequences": 4,
        },
        output={"layout": "packaged"},
    )
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    macs = report["cost"]["pruned"]["macs"] / report["cost"]["dense"]["macs"]
    assert 0.66 < macs <= 0.7
    assert report["verification"]["max_abs_difference"] <= 1e-5
    assert "trust_remote_code=True" in (outcome.artifact / "README.md").read_text()
    found = stock.load(outcome.artifact, "text-generation")
    widths = {one["kind"]: one["layers"] for one in report["widths"]["structures"]}
    assert [layer.mlp.down_proj.in_features for layer in found.model.layers] == widths["neuron"]
    units = json.loads((outcome.artifact / "secateur" / "units.json").read_text())["units"]
    assert {kind: [len(kept) for kept in layers] for kind, layers in units.items()} == widths
    expected = hashes(outcome.artifact)
    work = tmp_path / "again"
    assert run_and_kill(tmp_path, work, "before_checkpoint_rename", 4) == -signal.SIGKILL
    again = pipeline.run(request(tmp_path, work), Recorder())
    assert hashes(again.artifact) == expected
    assert torch.isfinite(next(found.parameters())).all()


@pytest.mark.parametrize("recipe", ["k-prune", "finercut"])
def test_recipes_of_widths_of_their_own(recipe: str, tmp_path: Path) -> None:
    asked = _job(tmp_path, recipe, {"sparsity": 0.4}, output={"layout": "packaged"})
    report = json.loads(pipeline.run(asked, Recorder()).report.read_text())
    schema.validate(report)
    # One step of heads is an eighth of a layer's; a whole part is a sixth of the model.
    assert 0.4 - 1e-9 <= report["target"]["achieved"] < (0.6 if recipe == "finercut" else 0.45)
    assert report["widths"]["layout"] == "packaged"
