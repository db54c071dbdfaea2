"""Formats of a result: what a model offers, and what is refused with which reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compression.anatomy import Inspection
from compression.loading.admission import admit_model, folder_sources
from tests.resolving import attempt, faults
from tests.tiny_models import tiny_bert, tiny_llama

BOTH = ["safetensors", "gguf"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    root = tmp_path_factory.mktemp("models")

    def look(folder: Path) -> Inspection:
        return Inspection.from_json(admit_model(folder_sources(folder)).inspection)

    qwen = {"architecture": "Qwen2ForCausalLM", "layers": 3}
    return {
        "llama": look(tiny_llama(root / "llama")),
        "qwen2": look(tiny_llama(root / "qwen2", **qwen)),
        "relu": look(tiny_llama(root / "relu", config={"hidden_act": "relu"})),
        "encoder": look(tiny_bert(root / "encoder")),
    }


def test_formats_are_named_in_their_order(models: dict[str, Inspection]) -> None:
    assert attempt(models["llama"]).output.formats == ["safetensors"]
    for given in (BOTH, BOTH[::-1], [*BOTH, "gguf"]):
        assert attempt(models["llama"], output={"formats": given}).output.formats == BOTH
    assert models["llama"].formats == tuple(BOTH)
    assert Inspection.from_json(models["qwen2"].to_json()) == models["qwen2"]


@pytest.mark.parametrize(
    ("model", "changes", "pointer", "words"),
    [
        ("encoder", {}, "/output/formats/1", ("BertModel", "Formats of this model: safetensors.")),
        ("relu", {}, "/output/formats/1", ("hidden_act is 'relu'", "silu")),
        ("llama", {"output": {"formats": ["gguf"]}}, "/output/formats", ('write ["safetensors", "gguf"]',)),
        (
            "qwen2",
            {
                "recipe": "magnitude-width",
                "calibration": None,
                "structure": {"granularity": "head"},
                "target": {"sparsity": 0.5},
            },
            "/output/formats/1",
            ("heads as fill the hidden width", "'head' changes that"),
        ),
    ],
)
def test_what_is_refused(
    models: dict[str, Inspection],
    model: str,
    changes: dict[str, Any],
    pointer: str,
    words: tuple[str, ...],
) -> None:
    (fault,) = faults(models[model], **{"output": {"formats": BOTH}, **changes})
    assert (fault.pointer, fault.code) == (pointer, "format_unsupported")
    assert all(word in fault.message for word in words)


def test_an_inspection_from_before_there_was_the_format(models: dict[str, Inspection]) -> None:
    data = models["llama"].to_json()
    del data["formats"], data["format_limits"]
    (fault,) = faults(Inspection.from_json(data), output={"formats": BOTH})
    assert "uploaded before there was this format" in fault.message
    assert attempt(Inspection.from_json(data)).output.formats == ["safetensors"]
