"""How layers of widths of their own are asked for: what is refused, with what advice, and what plans say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compression.anatomy import Inspection
from compression.anatomy.plan import plan
from compression.loading.admission import admit_model, folder_sources
from tests.resolving import attempt, faults
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_llama, write_byte_tokenizer

OWN: dict[str, Any] = {"recipe": "flap", "options": {"allocation": "standardized"}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    root = tmp_path_factory.mktemp("models")

    def look(folder: Path) -> Inspection:
        if not (folder / "tokenizer.json").exists():
            write_byte_tokenizer(folder, bert=False, context=60)
        return Inspection.from_json(admit_model(folder_sources(folder)).inspection)

    return {
        "llama": look(tiny_llama(root / "llama", ffn=96, heads=4, key_value_heads=2)),
        "qwen3": look(tiny_family(root / "qwen3", "Qwen3ForCausalLM", vocab_size=264, attention_bias=False)),
        "gpt2": look(tiny_family(root / "gpt2", "GPT2LMHeadModel", vocab_size=264)),
        "mixtral": look(tiny_family(root / "mixtral", "MixtralForCausalLM", vocab_size=264)),
    }


@pytest.mark.parametrize(
    ("model", "changes", "pointer", "words"),
    [
        ("llama", OWN, "/output/layout", ("'standardized'", '"padded"', '"packaged"', "'uniform'")),
        ("gpt2", OWN, "/output/layout", ('"padded"', "'uniform'")),
        ("llama", {"recipe": "flap", "output": {"layout": "padded"}}, "/output/layout", ("Leave it out",)),
        ("llama", {"output": {"layout": "padded"}}, "/output/layout", ("Leave it out",)),
        (
            "gpt2",
            {**OWN, "output": {"layout": "packaged"}},
            "/output/layout",
            ("GPT2LMHeadModel", "LlamaForCausalLM", '"padded"'),
        ),
        (
            "llama",
            {**OWN, "output": {"layout": "padded"}, "target": {"macs": 0.7}},
            "/target/macs",
            ("hardly fewer macs", "sparsity", '"packaged"'),
        ),
        (
            "llama",
            {
                "recipe": "flap",
                "options": {"allocation": "standardized", "remove_parts": "also"},
                "output": {"layout": "packaged", "formats": ["safetensors", "gguf"]},
            },
            "/output/formats",
            ("remove_parts 'no'", '"padded"'),
        ),
        (
            "qwen3",
            {**OWN, "output": {"layout": "packaged", "formats": ["safetensors", "gguf"]}},
            "/output/formats",
            ("LlamaForCausalLM and MistralForCausalLM",),
        ),
        (
            "mixtral",
            {"recipe": "expert-drop", "options": {"allocation": "global"}, "output": {"layout": "padded"}},
            "/options/allocation",
            ("equal numbers", "'uniform'"),
        ),
        (
            "llama",
            {**OWN, "output": {"layout": "padded"}, "target": {"sparsity": 0.97}},
            "/target/sparsity",
            ("Reachable: up to 0.", "'neuron+head'"),
        ),
        (
            "llama",
            {**OWN, "output": {"layout": "packaged"}, "target": {"parameters": 0.05}},
            "/target/parameters",
            ("Reachable: ratios from 0.",),
        ),
        (
            "llama",
            {
                "recipe": "flap",
                "options": {"allocation": "depth", "neuron_multiple": 96},
                "output": {"layout": "padded"},
            },
            "/options/neuron_multiple",
            ("96", "lower it"),
        ),
    ],
)
def test_refused_with_advice(
    models: dict[str, Inspection], model: str, changes: dict[str, Any], pointer: str, words: tuple[str, ...]
) -> None:
    (fault,) = faults(models[model], **changes)
    assert fault.pointer == pointer
    for word in words:
        assert word in fault.message, fault.message


def test_packaged_is_not_offered_where_there_is_no_code(models: dict[str, Inspection]) -> None:
    (fault,) = faults(models["gpt2"], **OWN)
    assert "packaged" not in fault.message


@pytest.mark.parametrize("kind", ["parameters", "macs", "bytes", "sparsity"])
def test_plans_meet_the_target_to_a_step(models: dict[str, Inspection], kind: str) -> None:
    value = 0.8 if kind != "sparsity" else 0.3
    found = attempt(models["llama"], **OWN, output={"layout": "packaged"}, target={kind: value})
    planned = plan(found, models["llama"])
    if kind == "sparsity":
        assert planned["cut"]["sparsity"] == pytest.approx(0.3, abs=0.01)
    else:
        assert planned["ratios"][kind] == pytest.approx(0.8, abs=0.02)
    assert any("standardized decides while running" in note for note in planned["notes"])
    assert planned["cut"]["widths"]["neuron"] == {"dense": 96, "kept": None}


def test_a_padded_plan_counts_zeros(models: dict[str, Inspection]) -> None:
    found = attempt(models["llama"], **OWN, output={"layout": "padded"}, target={"sparsity": 0.3})
    planned = plan(found, models["llama"])
    assert planned["ratios"]["parameters"] == 1
    assert planned["ratios"]["nonzeros"] < 0.9
    assert any("Zeros up to the widest layer" in note for note in planned["notes"])


def test_whole_parts_lower_what_can_be_reached(models: dict[str, Inspection]) -> None:
    changes = {"recipe": "flap", "output": {"layout": "packaged"}, "target": {"sparsity": 0.97}}
    options = {"allocation": "global", "remove_parts": "also"}
    assert attempt(models["llama"], **changes, options=options).options["remove_parts"] == "also"
