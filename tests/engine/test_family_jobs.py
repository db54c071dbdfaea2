"""Whole jobs on models of the families whose layers differ most from Llama's and BERT's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compression import pipeline
from compression.anatomy import Inspection
from compression.loading.admission import admit_model, folder_sources
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, request, write_job
from tests.tiny_families import tiny_family
from tests.tiny_models import write_byte_tokenizer

LABELS = ("no", "perhaps", "yes")


@pytest.mark.parametrize("case", ["RobertaModel"])
def test_speed_is_measured_within_the_context(case: str, tmp_path: Path) -> None:
    dense = tiny_family(tmp_path / "model", case, vocab_size=264)
    write_byte_tokenizer(dense, bert=True, context=60)
    write_texts(tmp_path / "text.jsonl", 60)
    specification = {
        "recipe": "layer-drop",
        "target": {"layers": 1},
        "calibration": {"dataset": "dst_text", "samples": 8, "sequence_length": 32},
        "evaluation": {"samples": 4},
    }
    write_job(tmp_path, "model", {"dst_text": "text.jsonl"}, specification)
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), Recorder())
    assert "64 tokens at once" in outcome.report.read_text()


@pytest.mark.parametrize(
    "case",
    [
        "Phi3ForCausalLM",
        "OPTForCausalLM-projected",
        "FalconForCausalLM-alibi",
        "GPT2LMHeadModel",
        "DistilBertForSequenceClassification",
    ],
)
def test_two_of_four(case: str, tmp_path: Path) -> None:
    classifier = "Classification" in case
    dense = tiny_family(tmp_path / "model", case, vocab_size=264)
    write_byte_tokenizer(dense, bert=classifier, context=60)
    write_texts(tmp_path / "text.jsonl", 60, LABELS if classifier else None)
    specification = {
        "recipe": "wanda",
        "target": {"sparsity": 0.5},
        "structure": {"granularity": "2:4"},
        "calibration": {"dataset": "dst_text", "samples": 8, "sequence_length": 32},
        "evaluation": {"measure": [], "samples": 4},
    }
    write_job(tmp_path, "model", {"dst_text": "text.jsonl"}, specification)
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), Recorder())
    before, after = (load_file(folder / "model.safetensors") for folder in (dense, outcome.artifact))
    sites = Inspection.from_json(admit_model(folder_sources(dense)).inspection).sites
    for site in sites:
        weight = after[site.name].T if site.transposed else after[site.name]
        groups = (weight != 0).reshape(site.shape[0], -1, 4).sum(-1)
        assert int(groups.max()) == int(groups.min()) == 2
    for name in before.keys() - {site.name for site in sites}:
        assert torch.equal(before[name], after[name])
    report = json.loads(outcome.report.read_text())
    assert report["target"]["achieved"] == 0.5
    assert report["verification"]["max_abs_difference"] <= 1e-5
