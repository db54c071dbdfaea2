"""Targets of neurons and heads: numbers by brute force, refusals with what is reachable, plans."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from compression.anatomy import Inspection, inspect
from compression.anatomy.families import family_of
from compression.anatomy.plan import plan
from compression.anatomy.widths import achieved, choose, resized
from compression.loading.admission import admit_model, folder_sources
from tests.resolving import attempt, faults
from tests.tiny_models import tiny_bert, tiny_llama

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {"hidden": 48, "heads": 8, "key_value_heads": 4, "ffn": 96, "layers": 3},
    "alone": {"hidden": 48, "heads": 8, "key_value_heads": 8, "ffn": 100, "layers": 2},
    "single": {"hidden": 48, "heads": 12, "key_value_heads": 1, "ffn": 64, "layers": 2},
    "mistral": {
        "hidden": 48, "heads": 6, "key_value_heads": 6, "head_dim": 8, "ffn": 72,
        "architecture": "MistralForCausalLM",
    },
    "half": {"hidden": 48, "heads": 8, "key_value_heads": 4, "ffn": 96, "dtype": "bfloat16"},
}  # fmt: skip


class Tiny:
    """A model, and its exact figures for any widths, from its config alone."""

    def __init__(self, folder: Path) -> None:
        self.admission = admit_model(folder_sources(folder))
        self.inspection = Inspection.from_json(self.admission.inspection)
        self.names = [site.name for site in self.inspection.sites]

    def inspected(self, widths: dict[str, int]) -> Inspection:
        family = family_of(self.admission.architecture)
        return inspect(family.resized(self.admission.config, widths), self.names)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    root = tmp_path_factory.mktemp("models")
    found = {name: Tiny(tiny_llama(root / name, **shape)) for name, shape in SHAPES.items()}
    return found | {"bert": Tiny(tiny_bert(root / "bert"))}


def _ask(**changes: Any) -> dict[str, Any]:
    return {"recipe": "magnitude-width", "calibration": None, **changes}


@pytest.mark.parametrize("name", SHAPES)
def test_an_inspection_cut_is_the_inspection_of_what_is_cut(name: str, models: dict[str, Tiny]) -> None:
    tiny = models[name]
    counts = {one.kind: one.count for one in tiny.inspection.structures}
    for neurons, heads in product((1, 24, counts["neuron"]), (1, 2, counts["head"])):
        widths = {"neuron": neurons, "head": heads}
        found, wanted = resized(tiny.inspection, widths), tiny.inspected(widths)
        for field in ("sites", "heads", "key_value_heads", "head_dim", "ffn", "parameters", "bytes",
                      "prunable_parameters", "layer_parameters", "layer_bytes"):  # fmt: skip
            assert getattr(found, field) == getattr(wanted, field), field


@pytest.mark.parametrize("granularity", ["neuron", "head", "neuron+head"])
@pytest.mark.parametrize("kind", ["sparsity", "parameters", "macs", "bytes"])
@pytest.mark.parametrize("name", SHAPES)
def test_targets_are_met_within_a_step(
    name: str, kind: str, granularity: str, models: dict[str, Tiny]
) -> None:
    inspection = models[name].inspection
    for amount in (0.85, 0.9, 0.8, 0.7):
        target = {kind: round(1 - amount, 2) if kind == "sparsity" else amount}
        structure = {"granularity": granularity}
        try:
            spec = attempt(inspection, **_ask(target=target, structure=structure))
        except Exception as error:
            assert "Reachable" in str(error.errors[0])  # type: ignore[attr-defined]
            continue
        made = plan(spec, inspection)
        widths = {one: made["cut"]["widths"][one]["kept"] for one in made["cut"]["widths"]}
        assert widths == choose(spec, inspection)
        smaller = models[name].inspected(widths)
        assert made["pruned"]["parameters"] == smaller.parameters
        assert all(n % spec.options["neuron_multiple"] == 0 or n == inspection.ffn
                   for one, n in widths.items() if one == "neuron")  # fmt: skip
        if kind == "sparsity":
            step = _largest_step(inspection, spec)
            assert abs(achieved(spec, inspection, widths) - target[kind]) <= step
        elif kind in ("parameters", "macs"):
            assert made["ratios"][kind] <= amount


def _largest_step(inspection: Inspection, spec: Any) -> float:
    """The share of one step of the finest kind that the job removes, gaps in the numbers of heads
    included."""
    found = {one.kind: one for one in inspection.structures}
    kinds = spec.structure.granularity.split("+")
    total = sum(found[kind].count * found[kind].parameters for kind in kinds)
    fine = found[kinds[0]]
    if fine.kind == "neuron":
        return 8 * fine.parameters / total
    counts = fine.counts or tuple(range(1, fine.count + 1))
    return max(b - a for a, b in pairwise(counts)) * fine.parameters / total


def test_both_kinds_lose_about_the_same_share(models: dict[str, Tiny]) -> None:
    inspection = models["grouped"].inspection
    spec = attempt(inspection, **_ask(target={"sparsity": 0.5}))
    assert spec.structure.granularity == "neuron+head"
    assert choose(spec, inspection) == {"neuron": 48, "head": 2}
    # Too little for one of four heads: neurons alone give it.
    spec = attempt(inspection, **_ask(target={"sparsity": 0.08}))
    assert choose(spec, inspection) == {"neuron": 88, "head": 4}


def test_the_first_granularity_that_the_model_has(models: dict[str, Tiny]) -> None:
    spec = attempt(models["bert"].inspection, **_ask(target={"sparsity": 0.5}))
    assert spec.structure.granularity == "neuron"
    (fault,) = faults(
        models["bert"].inspection, **_ask(target={"sparsity": 0.5}, structure={"granularity": "head"})
    )
    assert (fault.pointer, fault.code) == ("/structure/granularity", "granularity_unsupported")
    assert "neuron" in fault.message


def test_multiples(models: dict[str, Tiny]) -> None:
    inspection = models["grouped"].inspection
    spec = attempt(inspection, **_ask(target={"sparsity": 0.3}, structure={"granularity": "neuron"}))
    assert (spec.options["neuron_multiple"], spec.options["head_multiple"]) == (8, 1)
    assert choose(spec, inspection) == {"neuron": 64}
    options = {"neuron_multiple": 1}
    spec = attempt(
        inspection, **_ask(target={"sparsity": 0.3}, structure={"granularity": "neuron"}, options=options)
    )
    assert choose(spec, inspection) == {"neuron": 67}


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"target": {"sparsity": 0.999}}, "/target/sparsity", "asks for more"),
    ({"target": {"sparsity": 0.0001}}, "/target/sparsity", "less than one step"),
    ({"target": {"parameters": 0.05}}, "/target/parameters", "ratios from 0."),
    ({"target": {"parameters": 100}}, "/target/parameters", "parameters and more"),
    ({"target": {"macs": 0.01}}, "/target/macs", "Reachable: ratios from"),
    ({"target": {"bytes": "1kb"}}, "/target/bytes", "bytes and more"),
    ({"target": {"layers": 1}}, "/target/layers", "cannot aim at layers"),
    ({"target": {"sparsity": 0.5}, "options": {"neuron_multiple": 200}}, "/options/neuron_multiple",
     "lower it"),
    ({"target": {"sparsity": 0.5}, "structure": {"ignore": ["*.q_proj.weight"]}}, "/structure/ignore",
     "leave it out"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "where", "words"), REFUSALS)
def test_what_is_refused(changes: dict[str, Any], where: str, words: str, models: dict[str, Tiny]) -> None:
    found = {fault.pointer: fault for fault in faults(models["grouped"].inspection, **_ask(**changes))}
    assert words in found[where].message


def test_criteria_say_what_data_they_need(models: dict[str, Tiny]) -> None:
    inspection = models["grouped"].inspection
    (fault,) = faults(inspection, recipe="flap", target={"sparsity": 0.5}, calibration=None)
    assert fault.code == "calibration_missing"
    (fault,) = faults(models["bert"].inspection, recipe="llm-pruner", target={"sparsity": 0.5})
    assert "loss" in fault.message


def test_an_inspection_survives_json(models: dict[str, Tiny]) -> None:
    for tiny in models.values():
        assert Inspection.from_json(tiny.inspection.to_json()) == tiny.inspection
    older = models["grouped"].inspection.to_json()
    del older["structures"]
    assert Inspection.from_json(older).structures == ()
