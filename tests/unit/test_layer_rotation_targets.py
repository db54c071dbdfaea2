"""Targets of a stream that every norm reads in a basis of its own: widths by brute force, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compression.anatomy import Inspection, count_macs
from compression.anatomy.plan import plan
from compression.anatomy.widths import choose
from tests.resolving import attempt, faults
from tests.unit.test_hidden_widths import Tiny

CASES = ("LlamaForCausalLM-tied", "Qwen3ForCausalLM", "MixtralForCausalLM", "Gemma2ForCausalLM")
ASKED: dict[str, Any] = {
    "recipe": "slicegpt", "calibration": {"dataset": "text"}, "output": {"layout": "packaged"},
    "options": {"rotation": "per-layer", "hidden_multiple": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tiny]:
    root = tmp_path_factory.mktemp("models")
    found = {case: Tiny(root / case, case) for case in CASES}
    for tiny in found.values():
        tiny.inspection = replace(tiny.inspection, has_tokenizer=True)
    return found


@pytest.mark.parametrize("kind", ["parameters", "macs", "bytes"])
@pytest.mark.parametrize("case", CASES[:2])
def test_the_widest_stream_that_meets_the_target(case: str, kind: str, models: dict[str, Tiny]) -> None:
    tiny = models[case]

    def figures(width: int, length: int) -> tuple[int, int]:
        """Parameters and multiply-accumulates with two matrices more a layer."""
        made = tiny.inspected({"hidden": width}, untied=True)
        more = 2 * made.layers * width * width
        return made.parameters + more, count_macs(made, length).total + more * length

    for amount in (1.05, 0.95, 0.8, 0.6):
        spec = attempt(tiny.inspection, **ASKED, target={kind: min(amount, 0.999)})
        made, found = plan(spec, tiny.inspection), choose(spec, tiny.inspection)
        assert found is not None
        length = made["sequence_length"]
        parameters, macs = figures(found["hidden"], length)
        assert (made["pruned"]["parameters"], made["pruned"]["macs"]) == (parameters, macs)
        dense = (tiny.inspection.parameters, count_macs(tiny.inspection, length).total)[kind == "macs"]
        fits = {
            width: figures(width, length)[kind == "macs"] / dense <= min(amount, 0.999)
            for width in range(1, 32)
        }
        assert found["hidden"] == max(width for width, fit in fits.items() if fit)
    assert "skip connections" in made["notes"][0]


def test_sparsity_counts_channels_alone(models: dict[str, Tiny]) -> None:
    tiny = models["LlamaForCausalLM-tied"]
    spec = attempt(tiny.inspection, **ASKED, target={"sparsity": 0.5})
    assert choose(spec, tiny.inspection) == {"hidden": 16}
    assert plan(spec, tiny.inspection)["cut"]["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("case", "changes", "pointer", "words"),
    [
        ("Qwen3ForCausalLM", {"output": {}}, "/output/layout", ("no stock config", '"packaged"', "'shared'")),
        ("Qwen3ForCausalLM", {"output": {"layout": "padded"}}, "/output/layout", ("nothing to pad",)),
        (
            "Qwen3ForCausalLM",
            {"output": {"layout": "packaged", "formats": ["safetensors", "gguf"]}},
            "/output/formats",
            ('leave "gguf" out',),
        ),
        ("Qwen3ForCausalLM", {"target": {"latency": 0.7}}, "/target/latency", ("aim at sparsity",)),
        ("Qwen3ForCausalLM", {"options": {}}, "/output/layout", ("Leave it out", "'per-layer'")),
        (
            "Qwen3ForCausalLM",
            {"options": {"rotation": "per-layer", "criterion": "magnitude"}},
            "/options/criterion",
            ("activation-energy",),
        ),
        ("MixtralForCausalLM", {}, "/options/rotation", ("no packaged code", "'shared'")),
        ("Gemma2ForCausalLM", {}, "/options/rotation", ("cannot be turned",)),
        (
            "Qwen3ForCausalLM",
            {"recipe": "minitron-width", "structure": {"granularity": "neuron"}},
            "/options/rotation",
            ("granularity 'hidden'",),
        ),
    ],
)
def test_what_is_refused(
    case: str, changes: dict[str, Any], pointer: str, words: tuple[str, ...], models: dict[str, Tiny]
) -> None:
    asked = {"target": {"sparsity": 0.5}, **ASKED, **changes}
    found = {fault.pointer: fault for fault in faults(models[case].inspection, **asked)}
    assert all(word in found[pointer].message for word in words), found


def test_layer_norms_stay_refused(tmp_path: Path) -> None:
    opt = Tiny(tmp_path / "opt", "OPTForCausalLM")
    assert isinstance(opt.inspection, Inspection)
    found = {fault.pointer: fault for fault in faults(opt.inspection, **ASKED, target={"sparsity": 0.5})}
    assert "layer norms subtract the mean" in found["/recipe"].message
