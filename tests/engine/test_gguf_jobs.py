"""Whole jobs whose result is written as GGUF too: what artifact, report and verification say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

from compression import pipeline
from compression.errors import ArtifactVerificationFailed, FormatImpossible
from compression.export import verify
from compression.report import schema
from compression.report.html import render
from tests.engine.corpora import write_texts
from tests.engine.jobs import Recorder, hashes, request, write_job
from tests.tiny_models import tiny_llama


def job(folder: Path, **more: Any) -> Any:
    """The request of a job on a tiny Llama that asks for both formats."""
    tiny_llama(folder / "model", layers=3, hidden=48, heads=8, key_value_heads=4, ffn=96)
    write_texts(folder / "text.jsonl", 30, None)
    specification = {
        "recipe": "magnitude-width",
        "target": {"sparsity": 0.25},
        "structure": {"granularity": "neuron+head"},
        "evaluation": {"measure": [], "samples": 4, "dataset": "dst_text", "sequence_length": 24},
        "output": {"formats": ["gguf", "safetensors"], "dtype": "bfloat16"},
        **more,
    }
    write_job(folder, "model", {"dst_text": "text.jsonl"}, specification)
    return request(folder, folder / "work")


def test_a_job_with_narrower_layers(tmp_path: Path) -> None:
    outcome = pipeline.run(job(tmp_path), Recorder())
    path = outcome.artifact / "model.gguf"
    report = json.loads(outcome.report.read_text())
    schema.validate(report)
    written = report["artifact"]["gguf"]
    assert (written["path"], written["bytes"], written["remarks"]) == ("model.gguf", path.stat().st_size, [])
    assert any(note.startswith("model.gguf (") for note in report["notes"])
    (runtime,) = [one for one in report["runtimes"] if one["name"] == "llama.cpp"]
    assert runtime["loads"] == "yes"
    assert "model.gguf" in render(report)
    assert "llama-cli -m PATH/model.gguf" in (outcome.artifact / "README.md").read_text()
    manifest = json.loads((outcome.artifact / "secateur" / "manifest.json").read_text())
    assert manifest["gguf"] == written
    assert {one["path"]: one["sha256"] for one in manifest["files"]}["model.gguf"] == (
        hashes(outcome.artifact)["model.gguf"]
    )
    reader = gguf.GGUFReader(path)
    heads = reader.fields["llama.attention.head_count"].contents()
    assert heads < 8
    assert reader.fields["llama.attention.key_length"].contents() == 6
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_BF16
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert [int(size) for size in tensors["blk.0.attn_q.weight"].shape] == [48, heads * 6]
    assert written["tensors"] == len(tensors)

    data = bytearray(path.read_bytes())
    data[-40] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactVerificationFailed, match=r"model\.gguf: the tensor .* does not give"):
        verify.run(outcome.artifact, tmp_path / "work" / "expected.safetensors")


def test_a_tokenizer_that_llama_cpp_has_not_ends_the_job_before_it_computes(tmp_path: Path) -> None:
    asked = job(tmp_path)
    path = tmp_path / "model" / "tokenizer.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "pre_tokenizer": {"type": "Whitespace"}}))
    recorder = Recorder()
    with pytest.raises(FormatImpossible, match=r"upload the model without its tokenizer") as caught:
        pipeline.run(asked, recorder)
    assert caught.value.code == "format_impossible"
    assert recorder.stages == ["load", "inspect"]
