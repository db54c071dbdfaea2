"""Whole jobs whose weights become products of two: plans come true, the code loads them, recovery,
resuming."""

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
from safetensors.torch import load_file, save_file

from compression import pipeline
from compression.anatomy import Inspection
from compression.anatomy.factors import factor_names
from compression.anatomy.plan import plan
from compression.anatomy.varied import PACKAGED
from compression.evaluation import stock
from compression.evaluation.macs import counted_macs
from compression.loading.admission import admit_model, folder_sources
from compression.loading.weights import WeightReader
from compression.report import schema
from tests.engine.jobs import Recorder, hashes, request, run_and_kill
from tests.engine.test_surgery import SIZES
from tests.engine.test_width_jobs import _job
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_llama, write_byte_tokenizer

PACKAGE = {"output": {"layout": "packaged"}}
TOKENS = torch.arange(3, 3 + 2 * 9).reshape(2, 9)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def _multiplied_out(dense: Path, artifact: Path, folder: Path) -> Path:
    """The stock model whose weights are the products of the artifact's factors."""
    factors, weights = _tensors(artifact), _tensors(dense)
    count = 0
    for name in weights:
        down, up = factor_names(name)
        if down in factors:
            weights[name] = (factors[up].double() @ factors[down].double()).to(weights[name].dtype)
            count += 1
    assert count
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((dense / "config.json").read_text())
    return folder


def _logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        model = stock.load(folder, "text-generation")
        return stock.answer(model, {"input_ids": TOKENS}, "text-generation")


@pytest.mark.parametrize("target", [{"sparsity": 0.4}, {"parameters": 0.75}, {"macs": 0.7}, {"bytes": 0.8}])
def test_plans_come_true(target: dict[str, Any], tmp_path: Path) -> None:
    asked = _job(tmp_path, "svd-llm", target, **PACKAGE)
    inspection = Inspection.from_json(admit_model(folder_sources(asked.model)).inspection)
    promised = plan(asked.specification, inspection)
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    found, dense = report["cost"]["pruned"], report["cost"]["dense"]
    for name in ("parameters", "macs"):
        assert promised["pruned"][name] == found[name]
    assert promised["pruned"]["bytes"] == pytest.approx(found["bytes"], rel=0.05)
    tensors = _tensors(outcome.artifact)
    shapes = {name: shape for row in promised["cut"]["sites"] for name, shape in row["factors"].items()}
    assert shapes
    assert {name: list(tensors[name].shape) for name in shapes} == shapes
    ((kind, value),) = target.items()
    if kind == "sparsity":
        gone = 1 - found["prunable_parameters"] / dense["prunable_parameters"]
        assert report["target"]["achieved"] == pytest.approx(gone)
        assert value <= gone < value + 0.08
    else:
        # Files of tiny models are heads for a good part.
        assert value - 0.08 < found[kind] / dense[kind] <= value + (0.06 if kind == "bytes" else 0)
    model = stock.load(outcome.artifact, "text-generation")
    assert sum(parameter.numel() for parameter in model.parameters()) == found["parameters"]
    assert report["verification"]["max_abs_difference"] <= 1e-5
    assert all(0 <= site["reconstruction_error"] < 1 for site in report["sites"])
    assert "products of two thin ones" in report["notes"][0]
    page = outcome.report_html.read_text()
    assert "Rank of every weight" in page
    card = (outcome.artifact / "README.md").read_text()
    assert "trust_remote_code=True" in card
    assert "low_rank" in card


@pytest.mark.parametrize("case", PACKAGED)
def test_packaged_is_the_product_of_the_factors(case: str, tmp_path: Path) -> None:
    folder = tiny_family(tmp_path / "model", case, vocab_size=264, **SIZES)
    write_byte_tokenizer(folder, bert=False, context=60)
    asked = _job(tmp_path, "svd-llm", {"sparsity": 0.4}, **PACKAGE)
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    assert report["verification"]["max_abs_difference"] <= 1e-5
    whole = _multiplied_out(asked.model, outcome.artifact, tmp_path / "whole")
    assert torch.allclose(_logits(outcome.artifact), _logits(whole), rtol=0, atol=1e-5)
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
    assert {module.rpartition(".")[2] for module in model.config.low_rank} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_multiplications_are_those_that_are_counted(tmp_path: Path) -> None:
    asked = _job(tmp_path, "svd", {"macs": 0.7}, evaluation={"measure": [], "sequence_length": 24}, **PACKAGE)
    outcome = pipeline.run(asked, Recorder())
    cost = json.loads(outcome.report.read_text())["cost"]["pruned"]
    model = stock.load(outcome.artifact, "text-generation")
    model.config._attn_implementation = "eager"
    batch = {"input_ids": torch.arange(24).reshape(1, 24)}
    assert cost["sequence_length"] == 24
    assert counted_macs(model, batch, "text-generation") == cost["macs"]


FRESH = """
import sys, torch, transformers
model, info = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], trust_remote_code=True, output_loading_info=True
)
assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
with torch.no_grad():
    torch.save(model.eval()(torch.arange(3, 21).reshape(2, 9)).logits, sys.argv[2])
try:
    transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except Exception as error:
    print("refused", type(error).__name__)
"""


def test_a_fresh_process_needs_nothing_but_the_folder(tmp_path: Path) -> None:
    outcome = pipeline.run(_job(tmp_path, "svd-llm", {"sparsity": 0.5}, **PACKAGE), Recorder())
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
    assert torch.equal(torch.load(tmp_path / "logits.pt"), _logits(outcome.artifact))


@pytest.mark.parametrize("method", ["lora", "distillation"])
def test_recoveries_train_the_factors(method: str, tmp_path: Path) -> None:
    asked = _job(
        tmp_path,
        "svd-llm",
        {"sparsity": 0.5},
        recovery={"method": method, "budget": {"steps": 6}, "options": {"batch_size": 2, "held_out": 0.0}},
        **PACKAGE,
    )
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    assert report["verification"]["max_abs_difference"] <= 1e-5
    assert report["cost"]["recovered"]["parameters"] == report["cost"]["pruned"]["parameters"]
    before = _tensors(tmp_path / "work" / "pruned")
    after = _tensors(outcome.artifact)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    factors = {name for name in before if name.endswith((".down.weight", ".up.weight"))}
    assert factors
    assert factors <= changed
    assert (changed == factors) == (method == "lora")


@pytest.mark.parametrize(
    ("options", "point", "count"),
    [
        ({"allocation": "energy", "rank_multiple": 2}, "mid_block", 5),
        ({"sequential": False, "update": ["refit"], "allocation": "energy"}, "after_checkpoint_rename", 6),
    ],
    ids=["sequential", "refit"],
)
def test_killed_jobs_end_with_the_same_bytes(
    options: dict[str, Any], point: str, count: int, tmp_path: Path
) -> None:
    asked = _job(tmp_path, "svd-llm", {"parameters": 0.8}, options=options, **PACKAGE)
    recorder = Recorder()
    outcome = pipeline.run(asked, recorder)
    report = json.loads(outcome.report.read_text())
    assert report["target"]["ratio"] <= 0.8
    ranks = {one["rank"] for one in report["low_rank"]["weights"]}
    assert len(ranks) > 1
    expected = hashes(outcome.artifact)
    work = tmp_path / "again"
    assert run_and_kill(tmp_path, work, point, count) == -signal.SIGKILL
    assert hashes(pipeline.run(request(tmp_path, work), Recorder()).artifact) == expected


def test_ignored_weights_stay_and_baselines_have_the_same_ranks(tmp_path: Path) -> None:
    asked = _job(
        tmp_path,
        "svd-llm",
        {"sparsity": 0.5},
        structure={"ignore": ["*.q_proj", "*.k_proj"]},
        evaluation={"measure": [], "samples": 4, "baselines": ["random", "magnitude"]},
        **PACKAGE,
    )
    outcome = pipeline.run(asked, Recorder())
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    assert {one["name"] for one in report["baselines"]} == {"random", "magnitude"}
    dense, found = _tensors(asked.model), _tensors(outcome.artifact)
    for name, value in dense.items():
        if "q_proj" in name or "k_proj" in name or "_proj" not in name:
            assert torch.equal(found[name], value)
        else:
            assert name not in found
    assert report["target"]["achieved"] == report["low_rank"]["sparsity"] >= 0.5


def test_a_narrow_type_is_written_and_read(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model", layers=2, hidden=48, heads=4, ffn=96, dtype="bfloat16", tied=True)
    asked = _job(tmp_path, "asvd", {"sparsity": 0.4}, **PACKAGE)
    outcome = pipeline.run(asked, Recorder())
    assert {value.dtype for value in _tensors(outcome.artifact).values()} == {torch.bfloat16}
    reader = WeightReader(outcome.artifact)
    assert "model.layers.0.self_attn.q_proj.up.weight" in reader
    assert "model.layers.0.self_attn.q_proj.weight" not in reader
