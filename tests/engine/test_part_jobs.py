"""Whole jobs on models whose layers have several parts or are not alike: plans come true, resuming, what is
refused."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from compression import pipeline
from compression.anatomy import Inspection
from compression.anatomy.plan import plan
from compression.loading.admission import admit_model, folder_sources
from compression.loading.weights import WeightReader
from compression.report import schema
from tests.engine.corpora import write_texts
from tests.engine.expert_models import tiny
from tests.engine.jobs import Recorder, hashes, request, run_and_kill, write_job
from tests.pictures import pictures, write_npz
from tests.resolving import faults
from tests.tiny_families import tiny_family
from tests.tiny_models import write_byte_tokenizer

SWIN = "SwinForImageClassification"
T5 = "T5ForConditionalGeneration-unscaled"
QWEN = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}


def _job(folder: Path, case: str, recipe: str, layout: str = "apart", **more: Any) -> Any:
    """The request of a job; the model is made."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"dataset": "dst_a", "samples": 10}
    if case == SWIN:
        tiny_family(folder / "model", case, image_size=24, patch_size=2, window_size=3)
        settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 24, "width": 24}}
        (folder / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
        files = {"dst_a": write_npz(folder / "a.npz", *pictures(40)).name}
    else:
        changes = QWEN if case.startswith("Qwen2Moe") else {}
        tiny(folder / "model", case, layout, vocab_size=264, **changes)
        write_byte_tokenizer(folder / "model", bert=case.startswith("T5"), context=60)
        write_texts(folder / "a.jsonl", 60)
        files, data = {"dst_a": "a.jsonl"}, {**data, "sequence_length": 24}
    specification = {
        "recipe": recipe, "target": {"sparsity": 0.4}, "calibration": data,
        "evaluation": {"measure": [], "samples": 4}, **more,
    }  # fmt: skip
    write_job(folder, "model", files, specification)
    return request(folder, folder / "work")


def _came_true(asked: Any, outcome: Any) -> dict[str, Any]:
    """Checks that hold for every job; gives the units that were kept."""
    inspection = Inspection.from_json(admit_model(folder_sources(asked.model)).inspection)
    promised, report = plan(asked.specification, inspection), json.loads(outcome.report.read_text())
    schema.validate(report)
    for name in ("parameters", "macs"):
        assert promised["pruned"][name] == report["cost"]["pruned"][name], name
    assert promised["pruned"]["bytes"] == pytest.approx(report["cost"]["pruned"]["bytes"], rel=0.05)
    reader = WeightReader(outcome.artifact)
    for site in promised["cut"]["sites"]:
        assert list(reader.tensor(site["name"]).shape) == site["kept_shape"], site["name"]
    assert report["verification"]["max_abs_difference"] <= 1e-5
    widths = {one["kind"]: one["kept"] for one in report["widths"]["structures"]}
    assert {kind: one["kept"] for kind, one in promised["cut"]["widths"].items()} == widths
    assert report["widths"]["sparsity"] == promised["cut"]["sparsity"]
    assert any(note.startswith(("All experts", "All layers", "Every layer")) for note in promised["notes"])
    units: dict[str, Any] = json.loads((outcome.artifact / "secateur" / "units.json").read_text())["units"]
    return units


JOBS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("MixtralForCausalLM", "flap", "fused", {"structure": {"granularity": "neuron"}}),
    ("Qwen2MoeForCausalLM", "minitron-width", "apart", {
        "structure": {"granularity": "neuron"}, "target": {"macs": 0.8},
        "recovery": {"method": "lora", "budget": {"steps": 2}},
    }),
    ("MixtralForCausalLM", "minitron-width", "fused", {"structure": {"granularity": "neuron+hidden"}}),
    ("Qwen3MoeForCausalLM", "llm-pruner", "apart", {"output": {"dtype": "bfloat16"}}),
    (T5, "flap", "apart", {}),
    (T5, "ziplm", "apart", {"structure": {"granularity": "head"}, "target": {"parameters": 0.9}}),
    ("T5EncoderModel", "minitron-width", "apart", {"target": {"bytes": 0.8}}),
    (SWIN, "vbp", "apart", {}),
]  # fmt: skip


@pytest.mark.parametrize(("case", "recipe", "layout", "more"), JOBS)
def test_the_plan_comes_true(
    case: str, recipe: str, layout: str, more: dict[str, Any], tmp_path: Path
) -> None:
    asked = _job(tmp_path, case, recipe, layout, **more)
    units = _came_true(asked, pipeline.run(asked, Recorder()))
    if case.startswith("Mixtral"):
        assert units.keys() - {"hidden"} == {f"neuron.{expert}" for expert in range(4)}
    if case == T5 and "head" in units:
        assert len({tuple(kept) for kept in units["head"][:3]}) == 1
        assert len(units["head.cross"]) == 2
    if case == SWIN:
        first = len(units["neuron"][0])
        assert [len(kept) for kept in units["neuron"]] == [first, first, 2 * first, 2 * first]


@pytest.mark.parametrize(
    ("case", "layout", "more"),
    [
        ("MixtralForCausalLM", "fused", {"structure": {"granularity": "neuron"}}),
        (T5, "apart", {}),
        (SWIN, "apart", {}),
    ],
)
def test_a_killed_job_ends_with_the_same_bytes(
    case: str, layout: str, more: dict[str, Any], tmp_path: Path
) -> None:
    options = {"sequential": True, "update": ["least-squares", "bias-compensation"]}
    asked = _job(tmp_path, case, "flap", layout, options=options, **more)
    whole = pipeline.run(asked, Recorder())
    # Of a T5, in the second layer of the decoder.
    assert run_and_kill(tmp_path, tmp_path / "again", "mid_block", 5 if case == T5 else 2) == -signal.SIGKILL
    resumed = pipeline.run(request(tmp_path, tmp_path / "again"), Recorder())
    assert hashes(whole.artifact) == hashes(resumed.artifact)


def _inspection(folder: Path, case: str, **changes: Any) -> Inspection:
    return Inspection.from_json(admit_model(folder_sources(tiny_family(folder, case, **changes))).inspection)


NEURONS, HEADS = {"structure": {"granularity": "neuron"}}, {"structure": {"granularity": "head"}}
VARIED = {"options": {"allocation": "global"}, "output": {"layout": "padded"}}
REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    ("BloomForCausalLM", {"recipe": "flap"}, "/recipe", "4 times the hidden width"),
    ("BloomForCausalLM", HEADS, "/recipe", "does not work on the family"),
    (SWIN, {**HEADS, "calibration": None}, "/structure/granularity", "derives the width of a head"),
    ("BertModel", HEADS, "/structure/granularity", "derives the width of a head"),
    ("Qwen2MoeForCausalLM", NEURONS, "/structure/granularity", "multiple of 8"),
    ("MixtralForCausalLM", {**NEURONS, **VARIED}, "/options/allocation", "of one width"),
    (T5, VARIED, "/options/allocation", "table of positions"),
    (T5, {"options": {"calibration_sets": 2}}, "/options/calibration_sets", "table of positions"),
    ("MixtralForCausalLM", {"structure": {"granularity": "neuron", "ignore": ["*.w1.weight"]}},
     "/structure/ignore", "leave it out"),
    ("MixtralForCausalLM", {**NEURONS, "options": {"criterion": "router-mass"}}, "/options/criterion",
     "not for neurons"),
    ("MixtralForCausalLM", {**NEURONS, "target": {"sparsity": 0.95}, "calibration": None}, "/target/sparsity",
     "asks for more"),
    ("Qwen3MoeForCausalLM", {"recipe": "cfsp", "structure": NEURONS["structure"]}, "/recipe",
     "does not work on the family"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "asked", "where", "words"), REFUSED)
def test_what_is_refused(case: str, asked: dict[str, Any], where: str, words: str, tmp_path: Path) -> None:
    inspection = _inspection(tmp_path / "m", case)
    asked = {"recipe": "magnitude-width", "target": {"sparsity": 0.5}, **asked}
    found = {fault.pointer: fault for fault in faults(inspection, **asked)}
    assert words in found[where].message


def test_what_an_inspection_says_of_what_is_not_offered(tmp_path: Path) -> None:
    bloom = _inspection(tmp_path / "a", "BloomForCausalLM")
    limits = {one["kind"]: one["reason"] for one in bloom.structure_limits}
    assert "4 times" in limits["neuron"]
    assert "slopes" in limits["head"]
    found = _inspection(tmp_path / "b", SWIN)
    assert {one["kind"] for one in found.structure_limits} == {"head", "hidden"}
    assert Inspection.from_json(found.to_json()) == found
    older = found.to_json()
    del older["structure_limits"]
    assert Inspection.from_json(older).structure_limits == ()
    assert _inspection(tmp_path / "c", "MixtralForCausalLM").structure_limits == ()


def test_a_mixture_loses_experts_unless_neurons_are_asked_for(tmp_path: Path) -> None:
    asked = _job(tmp_path, "MixtralForCausalLM", "magnitude-width")
    assert asked.specification.structure.granularity == "expert"
