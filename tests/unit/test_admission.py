"""Models that must be taken in, and that stock transformers loads them the same after their config was
rewritten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compression.anatomy import Inspection
from compression.loading.admission import Admission, admit_model, folder_sources
from tests.conftest import SHARED
from tests.tiny_models import tiny_bert, tiny_llama

CLASSES = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "feature-extraction": "AutoModel",
}

VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama tied": {"tied": True},
    "llama tied and stored": {"tied": True, "store_tied_head": True},
    "llama biases": {"attention_bias": True, "mlp_bias": True},
    "llama wide heads": {"head_dim": 16},
    "llama full heads": {"key_value_heads": 4},
    "llama bfloat16 shards": {"dtype": "bfloat16", "shards": 3},
    "llama old rope": {"config": {"rope_parameters": None, "rope_theta": 5000.0, "rope_scaling": None}},
    "llama linear rope": {
        "config": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}
    },
    "llama dynamic rope": {
        "config": {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    },
    "llama yarn rope": {
        "config": {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 64,
            },
        }
    },
    "llama llama3 rope": {
        "config": {
            "rope_parameters": None,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 32,
                "rope_type": "llama3",
            },
        }
    },
    "llama activations": {"config": {"hidden_act": "gelu", "rms_norm_eps": 1e-5, "eos_token_id": [0, 1]}},
    "mistral": {"architecture": "MistralForCausalLM"},
    "mistral window": {"architecture": "MistralForCausalLM", "config": {"sliding_window": 8}},
    "qwen2": {"architecture": "Qwen2ForCausalLM"},
    "qwen2 tied": {"architecture": "Qwen2ForCausalLM", "tied": True},
    "qwen2 window": {
        "architecture": "Qwen2ForCausalLM",
        "config": {
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    },
}


def admitted(folder: Path) -> Admission:
    return admit_model(folder_sources(folder))


def same_model(folder: Path, work: Path) -> Admission:
    """Admits a folder, lays the rewritten files over a copy, and compares what stock transformers makes
    of both."""
    import torch
    import transformers

    admission = admitted(folder)
    copy = work / "rewritten"
    shutil.copytree(folder, copy)
    for name, data in admission.rewritten.items():
        (copy / name).write_bytes(data)
    loader = getattr(transformers, CLASSES[admission.task])
    ids = torch.arange(3, 23)[None]
    outputs, settings = [], []
    for place in (folder, copy):
        model, found = loader.from_pretrained(place, dtype=torch.float32, output_loading_info=True)
        assert not found["missing_keys"] - {"pooler.dense.bias", "pooler.dense.weight"}
        assert not found["mismatched_keys"]
        with torch.no_grad():
            answer = model(input_ids=ids)
        outputs.append(answer.last_hidden_state if admission.task == "feature-extraction" else answer.logits)
        settings.append(model.config.to_dict())
        if "pooler.dense.weight" not in found["missing_keys"]:
            assert admission.parameters == model.num_parameters()
    assert torch.equal(*outputs)
    for ours in (
        "position_embedding_type",
        "transformers_version",
        "_name_or_path",
        "head_dim",
        "gradient_checkpointing",
    ):
        for config in settings:
            config.pop(ours, None)
    if "rope_parameters" in settings[0] and settings[0]["rope_parameters"].pop("type", None):
        settings[1]["rope_parameters"].pop("type", None)
    left = {key: value for key, value in settings[0].items() if settings[1].get(key) != value}
    assert not left
    return admission


@pytest.mark.parametrize("name", VARIANTS)
def test_llama_types_are_the_same_after_rewriting(name: str, tmp_path: Path) -> None:
    admission = same_model(tiny_llama(tmp_path / "model", **VARIANTS[name]), tmp_path)
    assert admission.family == "llama"
    assert admission.task == "text-generation"
    assert admission.dtype == VARIANTS[name].get("dtype", "float32")
    inspection = Inspection.from_json(json.loads(json.dumps(admission.inspection)))
    assert inspection.to_json() == admission.inspection
    assert inspection.tied_embeddings == VARIANTS[name].get("tied", False)
    assert inspection.parameters == admission.parameters
    for site in inspection.sites:
        assert admission.tensors[site.name].shape == site.shape


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix": True},
        {"prefix": True, "position_ids": True, "shards": 2},
        {"pooler": False},
        {"labels": ["a", "b", "c"]},
        {"labels": ["a", "b"], "prefix": False, "dtype": "bfloat16"},
        {"labels": ["LABEL_0", "LABEL_1"], "config": {"id2label": None, "label2id": None}},
        {
            "config": {
                "classifier_dropout": 0.2,
                "gradient_checkpointing": False,
                "_name_or_path": "somebody/model",
            }
        },
    ],
    ids=str,
)
def test_berts_are_the_same_after_rewriting(options: dict[str, Any], tmp_path: Path) -> None:
    admission = same_model(tiny_bert(tmp_path / "model", **options), tmp_path)
    inspection = Inspection.from_json(admission.inspection)
    assert inspection.family == "bert"
    assert inspection.labels == (tuple(options["labels"]) if options.get("labels") else None)
    assert inspection.has_pooler == options.get("pooler", True)
    for site in inspection.sites:
        assert admission.tensors[site.name].shape == site.shape
        assert site.name.startswith(inspection.layer_prefix)


def test_figures_of_a_model(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, shards=2)
    admission = admitted(folder)
    inspection = Inspection.from_json(admission.inspection)
    per_layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32
    assert inspection.prunable_parameters == 2 * per_layer
    assert inspection.layer_parameters == per_layer + 2 * 32
    assert admission.parameters == 2 * 264 * 32 + 2 * inspection.layer_parameters + 32
    assert inspection.bytes == 4 * admission.parameters
    assert inspection.layer_bytes == 4 * inspection.layer_parameters
    assert admission.bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert admission.weights == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert [site.kind for site in inspection.sites[:7]] == [
        "query",
        "key",
        "value",
        "output",
        "gate",
        "up",
        "down",
    ]
    for name, tensor in admission.tensors.items():
        begin, end = tensor.offsets
        assert end - begin == tensor.bytes == 4 * tensor.elements, name
        assert end <= (folder / tensor.file).stat().st_size


def test_offsets_lead_to_the_bytes(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    folder = tiny_llama(tmp_path)
    admission = admitted(folder)
    arrays = load_file(folder / "model.safetensors")
    raw = (folder / "model.safetensors").read_bytes()
    assert admission.tensors.keys() == arrays.keys()
    for name, tensor in admission.tensors.items():
        assert raw[slice(*tensor.offsets)] == arrays[name].tobytes()


@pytest.mark.shared
def test_the_reference_model() -> None:
    admission = admitted(SHARED / "models" / "llama-5m")
    assert (admission.parameters, admission.dtype) == (5_475_584, "float32")
    assert Inspection.from_json(admission.inspection).key_value_heads == 4


def test_no_tokenizer_is_said(tmp_path: Path) -> None:
    assert admitted(tiny_llama(tmp_path / "a")).inspection["has_tokenizer"]
    assert not admitted(tiny_llama(tmp_path / "b", tokenizer=False)).inspection["has_tokenizer"]


def test_our_own_artifacts_can_come_back(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    (folder / "secateur").mkdir()
    (folder / "secateur" / "manifest.json").write_text("{}")
    shutil.copy(folder / "model.safetensors", folder / "secateur" / "masks.safetensors")
    (folder / "README.md").write_text("# card")
    assert admitted(folder).weights == ("model.safetensors",)


def test_dropped_keys_are_listed(tmp_path: Path) -> None:
    admission = admitted(tiny_llama(tmp_path, config={"my_note": "x", "transformers_version": "4.0.0"}))
    assert "my_note" in admission.dropped
    assert "my_note" not in admission.config


def test_settings_that_point_elsewhere_are_left_out(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "vocab_file": "/etc/passwd",
        "tokenizer_file": "../../secret",
        "name_or_path": "/root/x",
        "from_slow": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(
        json.dumps(
            {
                "temperature": 0.7,
                "eos_token_id": [1, 2],
                "transformers_version": "5",
                "assistant_model": "a/b",
            }
        )
    )
    admission = admitted(folder)
    kept = json.loads(admission.rewritten["tokenizer_config.json"])
    assert kept.keys() & {"vocab_file", "tokenizer_file", "name_or_path", "from_slow"} == set()
    assert kept["eos_token"] == "<|endoftext|>"
    assert json.loads(admission.rewritten["generation_config.json"]) == {
        "temperature": 0.7,
        "eos_token_id": [1, 2],
    }


def test_rewriting_is_stable(tmp_path: Path) -> None:
    first = admitted(tiny_llama(tmp_path))
    (tmp_path / "config.json").write_bytes(first.rewritten["config.json"])
    second = admitted(tmp_path)
    assert second.rewritten["config.json"] == first.rewritten["config.json"]
    assert second.dropped == ()


def test_a_missing_dtype_is_that_of_the_weights(tmp_path: Path) -> None:
    assert (
        admitted(tiny_llama(tmp_path, dtype="bfloat16", config={"dtype": None})).config["dtype"] == "bfloat16"
    )
    assert (
        admitted(tiny_llama(tmp_path, config={"dtype": None, "torch_dtype": "bfloat16"})).config["dtype"]
        == "bfloat16"
    )
