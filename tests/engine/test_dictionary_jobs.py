"""Whole jobs whose weights become dictionaries with sparse codes: plans, files, recovery, resuming."""

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

from compression import pipeline
from compression.anatomy import Inspection
from compression.anatomy.factors import factor_names, packed_names
from compression.anatomy.plan import plan
from compression.evaluation import stock
from compression.evaluation.macs import counted_macs
from compression.loading.admission import admit_model, folder_sources
from compression.report import schema
from tests.engine.jobs import Recorder, hashes, request, run_and_kill
from tests.engine.test_low_rank_jobs import FRESH, PACKAGE, TOKENS, _logits, _tensors
from tests.engine.test_width_jobs import _job
from tests.tiny_models import tiny_llama


def _codes(tensors: dict[str, torch.Tensor], weight: str) -> torch.Tensor:
    """The codes [out, rank] that a result's entries and mask stand for, bit by bit."""
    values, mask = (tensors[name] for name in packed_names(weight))
    rank = tensors[factor_names(weight)[0]].shape[0]
    found = torch.zeros(len(values), rank, dtype=values.dtype)
    for row in range(len(values)):
        places = [place for place in range(rank) if int(mask[row, place // 8]) >> (place % 8) & 1]
        found[row, places] = values[row]
    return found


@pytest.mark.parametrize(("target", "options"), [
    ({"sparsity": 0.4}, {}), ({"parameters": 0.75}, {"atoms_per_entry": 3, "rank_multiple": 2}),
])  # fmt: skip
def test_plans_come_true(target: dict[str, Any], options: dict[str, Any], tmp_path: Path) -> None:
    evaluation = {"measure": [], "samples": 4, "sequence_length": 24, "baselines": ["random"]}
    asked = _job(tmp_path, "cospadi", target, options=options, evaluation=evaluation, **PACKAGE)
    inspection = Inspection.from_json(admit_model(folder_sources(asked.model)).inspection)
    promised = plan(asked.specification, inspection)
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    found, dense = report["cost"]["pruned"], report["cost"]["dense"]
    for name in ("parameters", "macs"):
        assert promised["pruned"][name] == found[name], name
    assert promised["pruned"]["bytes"] == pytest.approx(found["bytes"], rel=0.05)
    assert promised["cut"].keys() >= {"sites", "sparsity"}
    tensors = _tensors(outcome.artifact)
    shapes = {name: shape for row in promised["cut"]["sites"] for name, shape in row["factors"].items()}
    assert {name: list(tensors[name].shape) for name in shapes} == shapes
    masks = sum(tensor.numel() for name, tensor in tensors.items() if name.endswith("up.mask"))
    whole = sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    assert whole == 4 * found["parameters"] + masks
    if "parameters" in target:
        assert found["parameters"] <= 0.75 * dense["parameters"]
    else:
        assert 0.4 <= report["low_rank"]["sparsity"] == report["target"]["achieved"] < 0.48
    assert report["verification"]["max_abs_difference"] <= 1e-5
    assert report["baselines"][0]["name"] == "random"
    model = stock.load(outcome.artifact, "text-generation")
    assert sum(parameter.numel() for parameter in model.parameters()) == found["parameters"]
    model.config._attn_implementation = "eager"
    assert counted_macs(model, {"input_ids": torch.arange(24)[None]}, "text-generation") == found["macs"]
    assert "sparse codes" in report["notes"][0]
    assert "no faster" in promised["notes"][0]


def test_the_artifact_is_the_product(tmp_path: Path) -> None:
    """The stock model with the products multiplied out answers the same; the cache and training work."""
    asked = _job(tmp_path, "cospadi", {"sparsity": 0.3}, **PACKAGE)
    outcome = pipeline.run(asked, Recorder())
    tensors = _tensors(outcome.artifact)
    whole = stock.load(asked.model, "text-generation")
    count = 0
    for name, parameter in whole.named_parameters():
        down, _ = factor_names(name)
        if down in tensors:
            parameter.data = (_codes(tensors, name).double() @ tensors[down].double()).float()
            count += 1
    assert count
    with torch.no_grad():
        wanted = whole(TOKENS).logits
    assert torch.allclose(_logits(outcome.artifact), wanted, rtol=0, atol=1e-5)
    model = stock.load(outcome.artifact, "text-generation")
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS)
    cached, plain = (
        model.generate(TOKENS, attention_mask=mask, use_cache=cache, eos_token_id=None, **options)
        for cache in (True, False)
    )
    assert torch.equal(cached, plain)
    model(TOKENS, labels=TOKENS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    told = tmp_path / "logits.pt"
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(outcome.artifact), str(told)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert torch.equal(torch.load(told), _logits(outcome.artifact))


@pytest.mark.parametrize("method", ["lora", "distillation"])
def test_recoveries_keep_the_zeros(method: str, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", layers=2, hidden=48, heads=4, ffn=96, dtype="bfloat16")
    recovery = {"method": method, "budget": {"steps": 4}, "options": {"batch_size": 2, "held_out": 0.0}}
    asked = _job(tmp_path, "cospadi", {"sparsity": 0.4}, recovery=recovery, **PACKAGE)
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    assert report["cost"]["recovered"]["parameters"] == report["cost"]["pruned"]["parameters"]
    before, after = _tensors(tmp_path / "work" / "pruned"), _tensors(outcome.artifact)
    changed = 0
    for one in report["low_rank"]["weights"]:
        old, new = before[factor_names(one["name"])[1]], _codes(after, one["name"])
        assert new.dtype == torch.bfloat16
        assert not bool((new != 0)[old == 0].any())
        changed += int((new != old).sum())
    assert changed


def test_a_killed_job_ends_with_the_same_bytes(tmp_path: Path) -> None:
    asked = _job(tmp_path, "cospadi", {"sparsity": 0.4}, **PACKAGE)
    outcome = pipeline.run(asked, Recorder())
    work = tmp_path / "again"
    assert run_and_kill(tmp_path, work, "mid_block", 2) == -signal.SIGKILL
    assert hashes(pipeline.run(request(tmp_path, work), Recorder()).artifact) == hashes(outcome.artifact)
