"""Targets of experts: numbers, refusals with what is reachable, plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compression.anatomy import Inspection, inspect
from compression.anatomy.families import family_of
from compression.anatomy.plan import plan
from compression.anatomy.structures import Structure
from compression.anatomy.widths import choose, resized
from compression.errors import SpecificationInvalid
from compression.loading.admission import Admission, admit_model, folder_sources
from tests.engine.expert_models import tiny
from tests.resolving import attempt, faults
from tests.tiny_models import tiny_llama, write_byte_tokenizer

CASES = [
    "MixtralForCausalLM-apart", "MixtralForCausalLM-fused", "Qwen2MoeForCausalLM-apart",
    "Qwen3MoeForCausalLM-apart", "Qwen3MoeForCausalLM-fused",
]  # fmt: skip
EXPERT = {"MixtralForCausalLM": 3 * 56 * 32 + 32, "Qwen2MoeForCausalLM": 3 * 24 * 32 + 32,
          "Qwen3MoeForCausalLM": 3 * 24 * 32 + 32}  # fmt: skip
COUNTS = {"MixtralForCausalLM": (2, 3, 4), "Qwen2MoeForCausalLM": (2, 3, 4),
          "Qwen3MoeForCausalLM": (2, 3, 4, 5, 6, 7, 8)}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Admission]:
    found = {}
    for name in CASES:
        folder = tmp_path_factory.mktemp(name) / "model"
        tiny(folder, *name.split("-"), vocab_size=264)
        write_byte_tokenizer(folder, context=60)
        found[name] = admit_model(folder_sources(folder))
    return found


def _inspection(models: dict[str, Admission], name: str = "Qwen3MoeForCausalLM-apart") -> Inspection:
    return Inspection.from_json(models[name].inspection)


@pytest.mark.parametrize("name", CASES)
def test_experts_are_listed(name: str, models: dict[str, Admission]) -> None:
    found, case = _inspection(models, name), name.split("-")[0]
    structures = {one.kind: one for one in found.structures}
    assert structures["expert"] == Structure("expert", COUNTS[case][-1], EXPERT[case], COUNTS[case])
    # The widths of this Qwen2-MoE are 24 and 40.
    assert structures.keys() - {"neuron"} == {"head", "expert", "hidden"}
    assert ("neuron" in structures) == (case != "Qwen2MoeForCausalLM")
    assert "expert" in found.granularities
    assert Inspection.from_json(found.to_json()) == found


@pytest.mark.parametrize("name", CASES)
def test_an_inspection_cut_is_the_inspection_of_what_is_cut(name: str, models: dict[str, Admission]) -> None:
    admission, whole = models[name], _inspection(models, name)
    for kept in COUNTS[name.split("-")[0]]:
        config = family_of(admission.architecture).resized(admission.config, {"expert": kept})
        found = resized(whole, {"expert": kept})
        wanted = inspect(config, [site.name for site in found.sites] + _stored(name))
        for field in ("sites", "parameters", "bytes", "prunable_parameters", "layer_parameters",
                      "layer_bytes", "layer_macs", "not_prunable"):  # fmt: skip
            assert getattr(found, field) == getattr(wanted, field), (field, kept)


def _stored(name: str) -> list[str]:
    """Names that tell how files store experts."""
    return ["model.layers.0.mlp.experts.gate_up_proj"] if name.endswith("fused") else []


def _ask(**changes: Any) -> dict[str, Any]:
    return {"recipe": "magnitude-width", "calibration": None, **changes}


@pytest.mark.parametrize("kind", ["sparsity", "parameters", "bytes"])
@pytest.mark.parametrize("name", CASES)
def test_targets_are_met_within_an_expert(name: str, kind: str, models: dict[str, Admission]) -> None:
    inspection, counts = _inspection(models, name), COUNTS[name.split("-")[0]]
    for kept in counts[:-1]:
        ratio = 1 - kept / counts[-1]
        if kind != "sparsity":
            left = resized(inspection, {"expert": kept})
            dense = {"parameters": inspection.parameters, "bytes": inspection.bytes}[kind]
            ratio = {"parameters": left.parameters, "bytes": left.bytes}[kind] / dense + 1e-6
        spec = attempt(inspection, **_ask(target={kind: ratio}))
        assert spec.structure.granularity == "expert"
        assert choose(spec, inspection) == {"expert": kept}
        made = plan(spec, inspection)
        assert made["cut"]["widths"] == {"expert": {"dense": counts[-1], "kept": kept}}
        gone = (counts[-1] - kept) * EXPERT[name.split("-")[0]] * 3
        assert made["dense"]["parameters"] - made["pruned"]["parameters"] == gone
        # A token takes as many experts as before; rows of the router go.
        rows = 3 * (counts[-1] - kept) * 32
        assert made["dense"]["macs"] - made["pruned"]["macs"] == made["sequence_length"] * rows
        assert made["cut"]["weights_removed"] == gone - rows
        assert any("as many as before" in note for note in made["notes"])


def test_multiples(models: dict[str, Admission]) -> None:
    inspection = _inspection(models)
    spec = attempt(inspection, **_ask(target={"sparsity": 0.4}, options={"expert_multiple": 4}))
    assert choose(spec, inspection) == {"expert": 4}


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"target": {"sparsity": 0.9}}, "/target/sparsity", "of 8 experts 2, 3, 4, 5, 6, 7 may stay"),
    ({"target": {"sparsity": 0.01}}, "/target/sparsity", "less than one step"),
    ({"target": {"parameters": 0.1}}, "/target/parameters", "ratios from 0."),
    ({"target": {"macs": 0.7}}, "/target/macs", "as many experts as before"),
    ({"target": {"sparsity": 0.5}, "options": {"expert_multiple": 9}}, "/options/expert_multiple",
     "lower it"),
    ({"target": {"sparsity": 0.5}, "options": {"criterion": "wanda"}}, "/options/criterion",
     "wanda is not for experts: choose one of"),
    ({"target": {"sparsity": 0.5}, "options": {"update": ["least-squares"]}}, "/options/update/0",
     "least-squares is not for experts"),
    ({"target": {"sparsity": 0.5}, "options": {"update": ["expert-merge"]}}, "/options/update/0",
     "choose the criterion router-similarity"),
    ({"target": {"sparsity": 0.5}, "structure": {"ignore": ["*.gate.weight"]}}, "/structure/ignore",
     "leave it out"),
    ({"target": {"sparsity": 0.5}, "recipe": "expert-drop"}, "/calibration", "activations"),
    ({"target": {"sparsity": 0.5}, "recipe": "k-prune"}, "/recipe", "expert-drop"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "where", "words"), REFUSALS)
def test_what_is_refused(
    changes: dict[str, Any], where: str, words: str, models: dict[str, Admission]
) -> None:
    found = {fault.pointer: fault for fault in faults(_inspection(models), **_ask(**changes))}
    assert words in found[where].message


def test_experts_go_only_where_there_are_any(models: dict[str, Admission], tmp_path: Path) -> None:
    dense = Inspection.from_json(admit_model(folder_sources(tiny_llama(tmp_path / "m"))).inspection)
    found = {fault.pointer for fault in faults(dense, recipe="expert-drop", target={"sparsity": 0.5})}
    assert "/recipe" in found
    asked = _ask(
        target={"sparsity": 0.5}, options={"criterion": "router-mass"}, calibration={"dataset": "text"}
    )
    (fault,) = faults(dense, **asked)
    assert fault.pointer == "/options/criterion"
    assert "router-mass is not for neurons and heads: choose one of" in fault.message
    spec = attempt(_inspection(models), **asked)
    assert spec.options["criterion"] == "router-mass"


def test_a_model_that_uses_all_its_experts_keeps_them(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", "MixtralForCausalLM", "apart", num_experts_per_tok=4)
    found = Inspection.from_json(admit_model(folder_sources(folder)).inspection)
    assert "expert" not in {one.kind for one in found.structures}
    assert "expert" not in found.granularities
    with pytest.raises(SpecificationInvalid, match="cannot be cut by 'expert'"):
        attempt(found, **_ask(target={"sparsity": 0.5}, structure={"granularity": "expert"}))
