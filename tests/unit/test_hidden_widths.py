"""Targets of hidden channels: numbers by brute force, refusals with what is reachable, plans."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from compression.anatomy import Inspection, count_macs, inspect
from compression.anatomy.families import family_of
from compression.anatomy.plan import plan
from compression.anatomy.widths import achieved, choose, resized
from compression.loading.admission import admit_model, folder_sources
from compression.loading.weights import WeightReader
from tests.resolving import attempt, faults
from tests.tiny_families import tiny_family
from tests.tiny_models import tiny_bert

CASES = (
    "LlamaForCausalLM", "LlamaForCausalLM-tied", "Qwen3ForCausalLM", "Gemma2ForCausalLM",
    "MixtralForCausalLM", "Qwen2MoeForCausalLM",
)  # fmt: skip
FIELDS = (
    "sites", "hidden", "heads", "key_value_heads", "head_dim", "ffn", "parameters", "bytes",
    "prunable_parameters", "layer_parameters", "layer_bytes", "token_macs", "layer_macs", "row_parameters",
    "row_macs",
)  # fmt: skip


class Tiny:
    """A model, and its exact figures for any widths, from its config alone."""

    def __init__(self, folder: Path, case: str) -> None:
        tiny_family(folder, case)
        self.admission = admit_model(folder_sources(folder))
        self.inspection = Inspection.from_json(self.admission.inspection)
        self.names = WeightReader(folder).names()
        self.kinds = {one.kind: one for one in self.inspection.structures}

    def inspected(self, widths: dict[str, int], *, untied: bool = False) -> Inspection:
        config = family_of(self.admission.architecture).resized(self.admission.config, widths)
        more = {"tie_word_embeddings": False} if untied else {}
        return inspect({**config, **more}, self.names)

    def possible(self, kind: str) -> list[int]:
        one = self.kinds[kind]
        return list(one.counts or range(1, one.count + 1))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    root = tmp_path_factory.mktemp("models")
    return {case: Tiny(root / case, case) for case in CASES}


def _ask(granularity: str = "hidden", **changes: Any) -> dict[str, Any]:
    structure = {"granularity": granularity}
    return {"recipe": "magnitude-width", "calibration": None, "structure": structure, **changes}


@pytest.mark.parametrize("case", CASES)
def test_an_inspection_cut_is_the_inspection_of_what_is_cut(case: str, models: dict[str, Tiny]) -> None:
    tiny = models[case]
    others = [kind for kind in ("neuron", "head") if kind in tiny.kinds]
    numbers = [[max(1, tiny.kinds[kind].count // 2), tiny.kinds[kind].count] for kind in others]
    for hidden, *rest in product((4, 8, 28, 32), *numbers):
        widths = {"hidden": hidden, **dict(zip(others, rest, strict=True))}
        found, wanted = resized(tiny.inspection, widths), tiny.inspected(widths)
        for field in FIELDS:
            assert getattr(found, field) == getattr(wanted, field), field
        assert count_macs(found, 17).total == count_macs(wanted, 17).total
        told = {one.kind: one.parameters for one in wanted.structures}
        for one in found.structures:
            if one.kind != "head" or found.key_value_heads > 1:
                assert one.parameters == told[one.kind], one.kind


@pytest.mark.parametrize("kind", ["sparsity", "parameters", "macs", "bytes"])
@pytest.mark.parametrize("case", CASES)
def test_the_widest_stream_that_meets_the_target(case: str, kind: str, models: dict[str, Tiny]) -> None:
    tiny = models[case]
    options = {"hidden_multiple": 1}
    for amount in (0.9, 0.71, 0.5):
        target = {kind: round(1 - amount, 2) if kind == "sparsity" else amount}
        spec = attempt(tiny.inspection, **_ask(target=target, options=options))
        found = choose(spec, tiny.inspection)
        assert found is not None
        made = plan(spec, tiny.inspection)
        smaller = tiny.inspected(found)
        assert made["pruned"]["parameters"] == smaller.parameters
        assert made["pruned"]["macs"] == count_macs(smaller, made["sequence_length"]).total
        if kind == "sparsity":
            steps = tiny.possible("hidden")
            assert found["hidden"] == min(
                (n for n in steps), key=lambda n: (abs(n / 32 - 1 + target["sparsity"]), -n)
            )
            continue
        name = "parameters" if kind == "bytes" else kind
        ratios = {}
        for width in tiny.possible("hidden"):
            made_of = tiny.inspected({"hidden": width})
            figure = (
                made_of.parameters
                if name == "parameters"
                else (count_macs(made_of, made["sequence_length"]).total)
            )
            ratios[width] = figure / made["dense"][name]
        assert found["hidden"] == max(width for width, ratio in ratios.items() if ratio <= amount)


@pytest.mark.parametrize("kind", ["sparsity", "parameters", "macs"])
@pytest.mark.parametrize("granularity", ["neuron+hidden", "neuron+head+hidden"])
@pytest.mark.parametrize("case", ["LlamaForCausalLM-tied", "Qwen3ForCausalLM"])
def test_several_kinds_together(case: str, granularity: str, kind: str, models: dict[str, Tiny]) -> None:
    """Of all numbers within a step of the target, those with the most even shares."""
    tiny = models[case]
    options = {"neuron_multiple": 8, "hidden_multiple": 8}
    kinds = [one for one in granularity.split("+") if one in tiny.kinds]
    target = {kind: 0.35 if kind == "sparsity" else 0.6}
    if kinds != granularity.split("+"):
        assert any("cannot be cut" in fault.message for fault in faults(
            tiny.inspection, **_ask(granularity, target=target, options=options)))  # fmt: skip
        return
    spec = attempt(tiny.inspection, **_ask(granularity, target=target, options=options))
    found = choose(spec, tiny.inspection)
    assert found is not None
    dense = {one: tiny.kinds[one].count for one in kinds}
    length = plan(spec, tiny.inspection)["sequence_length"]

    def figure(widths: dict[str, int]) -> float:
        made = tiny.inspected(widths)
        if kind == "macs":
            return count_macs(made, length).total / count_macs(tiny.inspection, length).total
        if kind == "sparsity":
            return achieved(spec, tiny.inspection, widths)
        return made.parameters / tiny.inspection.parameters

    def spread(widths: dict[str, int]) -> float:
        shares = [widths[one] / dense[one] for one in kinds]
        return max(shares) - min(shares)

    best = None
    multiples = {"neuron": 8, "hidden": 8, "head": 1}
    steps = [[n for n in tiny.possible(one) if n % multiples[one] == 0] for one in kinds]
    for numbers in product(*steps):
        widths = dict(zip(kinds, numbers, strict=True))
        heads = 4 * widths.get("head", dense.get("head", 1)) // dense.get("head", 1)
        if tiny.kinds["hidden"].counts and widths["hidden"] % heads:
            continue
        other = {**widths, "neuron": widths["neuron"] - 8 if widths["neuron"] > 8 else 16}
        step = abs(figure(widths) - figure(other))
        missed = figure(widths) - target[kind]
        met = abs(missed) <= step / 2 + 1e-12 if kind == "sparsity" else -step - 1e-12 <= missed <= 0
        if met and widths != dense:
            best = min(best, spread(widths)) if best is not None else spread(widths)
    assert best is not None
    assert spread(found) == pytest.approx(best)


def test_sparsity_counts_what_the_channels_own(models: dict[str, Tiny]) -> None:
    tiny = models["LlamaForCausalLM"]
    spec = attempt(tiny.inspection, **_ask(target={"sparsity": 0.5}))
    assert achieved(spec, tiny.inspection, {"hidden": 16}) == 0.5


def test_a_head_that_is_untied_counts(models: dict[str, Tiny]) -> None:
    tiny = models["LlamaForCausalLM-tied"]
    inspection = replace(tiny.inspection, has_tokenizer=True)
    calibration = {"dataset": "text"}
    asked = {"recipe": "slicegpt", "calibration": calibration, "structure": {"granularity": "hidden"}}
    for target in ({"sparsity": 0.5}, {"parameters": 0.75}, {"macs": 0.6}, {"bytes": 0.8}):
        spec = attempt(inspection, **asked, target=target)
        made = plan(spec, inspection)
        (width,) = choose(spec, inspection).values()  # type: ignore[union-attr]
        smaller = tiny.inspected({"hidden": width}, untied=True)
        assert made["pruned"]["parameters"] == smaller.parameters
        assert made["pruned"]["macs"] == count_macs(smaller, made["sequence_length"]).total
        if "parameters" in target:
            wider = tiny.inspected({"hidden": width + 8}, untied=True)
            assert smaller.parameters <= 0.75 * tiny.inspection.parameters < wider.parameters
        if "sparsity" in target:
            assert (width, made["cut"]["sparsity"]) == (16, 0.5)
    assert "not tied" in made["notes"][0]


SLICE = {"recipe": "slicegpt", "calibration": {"dataset": "text"}}
REFUSALS: list[tuple[str, dict[str, Any], str, str]] = [
    ("LlamaForCausalLM", _ask(target={"sparsity": 0.999}), "/target/sparsity", "hidden channels"),
    ("LlamaForCausalLM", _ask(target={"sparsity": 0.5}, options={"hidden_multiple": 33}),
     "/options/hidden_multiple", "lower it"),
    ("LlamaForCausalLM", _ask(target={"sparsity": 0.5}, options={"allocation": "standardized"}),
     "/options/allocation", "write 'uniform'"),
    ("LlamaForCausalLM", _ask(target={"sparsity": 0.5}, options={"update": ["least-squares"]}),
     "/options/update/0", "not for hidden channels"),
    ("LlamaForCausalLM", _ask("neuron+hidden", target={"sparsity": 0.5}, options={"rotation": "shared"}),
     "/options/rotation", "granularity 'hidden'"),
    ("LlamaForCausalLM", {**SLICE, "target": {"sparsity": 0.5}, "options": {"criterion": "magnitude"}},
     "/options/criterion", "activation-energy"),
    ("Gemma2ForCausalLM", {**SLICE, "target": {"sparsity": 0.5}}, "/options/rotation", "cannot be turned"),
    ("LlamaForCausalLM", {**SLICE, "calibration": None, "target": {"sparsity": 0.5}}, "/calibration",
     "activations"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "asked", "where", "words"), REFUSALS)
def test_what_is_refused(
    case: str, asked: dict[str, Any], where: str, words: str, models: dict[str, Tiny]
) -> None:
    found = {fault.pointer: fault for fault in faults(models[case].inspection, **asked)}
    assert words in found[where].message


def test_families_without_it_say_why(tmp_path: Path) -> None:
    bert = Inspection.from_json(admit_model(folder_sources(tiny_bert(tmp_path / "bert"))).inspection)
    (fault,) = faults(bert, **_ask(target={"sparsity": 0.5}))
    assert (fault.pointer, fault.code) == ("/structure/granularity", "granularity_unsupported")
    assert "layer norms subtract the mean" in fault.message
    found = {fault.pointer: fault for fault in faults(bert, **SLICE, target={"sparsity": 0.5})}
    assert "layer norms subtract the mean" in found["/recipe"].message
    phi = Tiny(tmp_path / "phi", "Phi3ForCausalLM")
    found = {fault.pointer: fault for fault in faults(phi.inspection, **SLICE, target={"sparsity": 0.5})}
    assert "heads as wide as" in found["/recipe"].message


def test_the_gguf_of_a_turned_gemma_is_refused(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path / "gemma", "GemmaForCausalLM")
    asked = {**SLICE, "target": {"sparsity": 0.5}, "output": {"formats": ["safetensors", "gguf"]}}
    found = {fault.pointer: fault for fault in faults(tiny.inspection, **asked)}
    assert 'leave "gguf" out' in found["/output/formats"].message
