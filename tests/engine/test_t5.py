"""Whole jobs on T5 encoders: the table of positions stays, and the stock class of the encoder loads the
result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from compression import pipeline
from compression.anatomy import Inspection
from compression.errors import SpecificationInvalid
from compression.loading.admission import admit_model, folder_sources
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, request, write_job
from tests.tiny_families import tiny_family
from tests.tiny_models import write_byte_tokenizer


def job(tmp_path: Path, case: str, **specification: object) -> Path:
    dense = tiny_family(tmp_path / "model", case, vocab_size=264)
    write_byte_tokenizer(dense, bert=True, context=60)
    write_texts(tmp_path / "text.jsonl", 60)
    base = {
        "calibration": {"dataset": "dst_text", "samples": 8, "sequence_length": 32},
        "evaluation": {"measure": ["latency", "memory"], "samples": 4},
    }
    write_job(tmp_path, "model", {"dst_text": "text.jsonl"}, {**base, **specification})
    return dense


@pytest.mark.parametrize(
    ("case", "recipe"),
    [
        ("T5EncoderModel", "wanda"),
        ("T5EncoderModel-gated", "sparsegpt"),
        pytest.param("T5EncoderModel", "sparsegpt", marks=pytest.mark.slow),
        pytest.param("T5EncoderModel-gated", "wanda", marks=pytest.mark.slow),
    ],
)
def test_two_of_four(case: str, recipe: str, tmp_path: Path) -> None:
    dense = job(
        tmp_path, case, recipe=recipe, target={"sparsity": 0.5}, structure={"granularity": "2:4"},
        recovery={"method": "lora", "budget": {"steps": 4}},
    )  # fmt: skip
    outcome = pipeline.run(request(tmp_path, tmp_path / "work"), Recorder())
    before, after = (load_file(folder / "model.safetensors") for folder in (dense, outcome.artifact))
    sites = Inspection.from_json(admit_model(folder_sources(dense)).inspection).sites
    for site in sites:
        assert int((after[site.name] != 0).reshape(site.shape[0], -1, 4).sum(-1).max()) == 2
    for name in before.keys() - {site.name for site in sites}:
        assert torch.equal(before[name], after[name]), name
    report = json.loads(outcome.report.read_text())
    assert report["verification"]["max_abs_difference"] <= 1e-5
    assert report["verification"]["loader"] == "T5EncoderModel"
    manifest = json.loads((outcome.artifact / "secateur" / "manifest.json").read_text())
    assert manifest["loader"]["class"] == "T5EncoderModel"
    assert "from transformers import T5EncoderModel" in (outcome.artifact / "README.md").read_text()
    model = transformers.T5EncoderModel.from_pretrained(outcome.artifact)
    with torch.no_grad():
        assert bool(torch.isfinite(model(input_ids=torch.arange(3, 40)[None]).last_hidden_state).all())


def test_layers_are_not_dropped(tmp_path: Path) -> None:
    job(tmp_path, "T5EncoderModel", recipe="layer-drop", target={"layers": 1})
    with pytest.raises(SpecificationInvalid, match="layer"):
        request(tmp_path, tmp_path / "work")
