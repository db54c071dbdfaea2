"""Whole jobs that remove experts: plans come true, stock models, recovery, baselines, resuming."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from compression import pipeline
from compression.anatomy import Inspection
from compression.anatomy.plan import plan
from compression.evaluation import stock
from compression.loading.admission import admit_model, folder_sources
from compression.report import schema
from compression.report.html import render
from tests.engine.corpora import write_texts
from tests.engine.expert_models import tiny
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.tiny_models import write_byte_tokenizer

DATA = {"dataset": "dst_text", "samples": 10, "sequence_length": 24}


def _job(folder: Path, case: str, layout: str, recipe: str, **more: Any) -> Any:
    tiny(folder / "model", case, layout, vocab_size=264)
    write_byte_tokenizer(folder / "model", context=60)
    write_texts(folder / "text.jsonl", 60)
    specification = {
        "recipe": recipe, "target": {"sparsity": 0.5}, "calibration": DATA,
        "evaluation": {"measure": [], "samples": 4}, **more,
    }  # fmt: skip
    write_job(folder, "model", {"dst_text": "text.jsonl"}, specification)
    return request(folder, folder / "work")


def _came_true(asked: Any, outcome: Any) -> dict[str, Any]:
    """Checks that hold for every job of experts; gives the report."""
    inspection = Inspection.from_json(admit_model(folder_sources(asked.model)).inspection)
    promised, report = plan(asked.specification, inspection), json.loads(outcome.report.read_text())
    schema.validate(report)
    for name in ("parameters", "macs"):
        assert promised["pruned"][name] == report["cost"]["pruned"][name], name
        assert promised["dense"][name] == report["cost"]["dense"][name]
    assert promised["pruned"]["bytes"] == pytest.approx(report["cost"]["pruned"]["bytes"], rel=0.05)
    assert report["verification"]["max_abs_difference"] <= 1e-5
    (width,) = report["widths"]["structures"]
    assert promised["cut"]["widths"]["expert"] == {name: width[name] for name in ("dense", "kept")}
    assert report["target"]["achieved"] == promised["cut"]["sparsity"] == 0.5
    assert f"{width['dense'] - width['kept']} of {width['dense']} experts" in report["notes"][0]
    assert "faster" not in (outcome.artifact / "README.md").read_text().split("## Cost")[0]
    assert report["runtimes"][0]["faster"] == "depends"
    units = json.loads((outcome.artifact / "secateur" / "units.json").read_text())["units"]
    assert [len(kept) for kept in units["expert"]] == [width["kept"]] * inspection.layers
    assert len(report["sites"]) == len([site for site in promised["cut"]["sites"] if site["keep"]])
    assert all(0 < row["reconstruction_error"] < 10 for row in report["layers"])
    assert all(0.3 < row["weight_error"] < 1 for row in report["layers"])
    model, info = stock.load_with_info(outcome.artifact, "text-generation")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, eos_token_id=None).shape == (1, 5)
    return report


def test_baselines_and_recovery(tmp_path: Path) -> None:
    """Experts stored together."""
    asked = _job(
        tmp_path, "Qwen2MoeForCausalLM", "fused", "stun",
        evaluation={"measure": [], "samples": 4, "baselines": ["random", "magnitude"]},
        recovery={"method": "lora", "budget": {"steps": 4}},
    )  # fmt: skip
    recorder = Recorder()
    outcome = pipeline.run(asked, recorder)
    assert recorder.stages == list(pipeline.STAGES)
    report = _came_true(asked, outcome)
    assert len(report["baselines"]) == 2
    assert report["recovery"]["steps"] == 4
    assert report["cost"]["recovered"]["parameters"] == report["cost"]["pruned"]["parameters"]
    assert "experts of a layer" in render(report)


def test_a_killed_job_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Every expert's weights have tensors of their own."""
    asked = _job(tmp_path, "MixtralForCausalLM", "apart", "expert-drop", options={"sequential": True})
    whole = pipeline.run(asked, Recorder())
    _came_true(asked, whole)
    assert run_and_kill(tmp_path, tmp_path / "again", "mid_block", 2) == -signal.SIGKILL
    resumed = pipeline.run(request(tmp_path, tmp_path / "again"), Recorder())
    assert hashes(whole.artifact) == hashes(resumed.artifact)
