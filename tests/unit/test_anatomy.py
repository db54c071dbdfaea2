"""Counting: multiply-accumulates against a counter in torch, budgets against the engine, plans against
both."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compression import catalogue
from compression.anatomy import Inspection, count_macs, ignored, inspect, layer_of, with_layer
from compression.anatomy.budget import (
    layers_to_remove,
    remove_count,
    removed_in_all,
    uniform_counts,
    weight_bytes,
    without_layers,
)
from compression.anatomy.patterns import matches
from compression.anatomy.plan import plan
from compression.densities import Bounds, site_bounds
from compression.errors import TargetUnreachable
from compression.loading.admission import admit_model, folder_sources
from compression.loading.dataset_files import DatasetFacts
from compression.resolve import resolve
from compression.specification import JobSpecification, parse
from tests.tiny_models import tiny_bert, tiny_llama

TEXT = {"dst_1": DatasetFacts("text", 100, 1000, 1000, None)}


def look(folder: Path) -> Inspection:
    return Inspection.from_json(admit_model(folder_sources(folder)).inspection)


def counted(folder: Path, loader: str, tokens: int) -> int:
    """Multiply-accumulates of one forward pass, as torch dispatches it, without the table of rotary
    angles."""
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    model = getattr(transformers, loader).from_pretrained(folder, attn_implementation="eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(input_ids=torch.zeros((1, tokens), dtype=torch.int64), use_cache=False)
    angles = sum(
        sum(counts.values())
        for name, counts in counter.get_flop_counts().items()
        if name.endswith("rotary_emb")
    )
    return (counter.get_total_flops() - angles) // 2


@pytest.mark.parametrize("tokens", [1, 7, 32])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": True},
        {"head_dim": 16},
        {"key_value_heads": 1, "layers": 3},
        {"architecture": "Qwen2ForCausalLM"},
    ],
    ids=str,
)
def test_macs_of_decoders(options: dict[str, Any], tokens: int, tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, **options)
    assert count_macs(look(folder), tokens).total == counted(folder, "AutoModelForCausalLM", tokens)


@pytest.mark.parametrize("tokens", [1, 9])
def test_macs_of_encoders(tokens: int, tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "a", labels=["x", "y", "z"])
    assert count_macs(look(folder), tokens).total == counted(
        folder, "AutoModelForSequenceClassification", tokens
    )
    folder = tiny_bert(tmp_path / "b")
    assert count_macs(look(folder), tokens).total == counted(folder, "AutoModel", tokens)


def test_macs_by_hand(tmp_path: Path) -> None:
    inspection = look(tiny_llama(tmp_path))
    macs = count_macs(inspection, 10)
    assert sum(macs.sites.values()) == 10 * inspection.prunable_parameters
    assert macs.attention == 2 * 2 * 4 * 8 * 10 * 10
    assert macs.head == 10 * 32 * 264


def test_an_inspection_without_headers_counts_by_the_dtype(tmp_path: Path) -> None:
    admission = admit_model(folder_sources(tiny_bert(tmp_path, labels=["a", "b"])))
    found = inspect(admission.config, list(admission.tensors))
    assert replace(found, other_bytes=admission.inspection["other_bytes"]) == Inspection.from_json(
        admission.inspection
    )


def test_names_of_layers() -> None:
    assert layer_of("model.layers.12.mlp.up_proj.weight") == 12
    assert layer_of("bert.encoder.layer.3.output.dense.bias") == 3
    assert layer_of("encoder.layer.0.output.dense.bias") == 0
    assert layer_of("model.norm.weight") is None
    assert with_layer("model.layers.12.mlp.up_proj.weight", 3) == "model.layers.3.mlp.up_proj.weight"
    with pytest.raises(ValueError, match="belongs to no layer"):
        with_layer("lm_head.weight", 1)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("model.layers.0.mlp.up_proj.weight", True),
        ("model.layers.0.mlp.up_proj", True),
        ("*.up_proj", True),
        ("*up*", True),
        ("up_proj", False),
        ("*.layers.?.mlp.*", True),
        ("*.layers.[12].mlp.*", False),
        ("re:up_proj", True),
        (r"re:^model\.layers\.0\.", True),
        (r"re:layers\.1\.", False),
        ("re:up_proj$", False),
        ("*.UP_PROJ", False),
    ],
)
def test_patterns(pattern: str, found: bool) -> None:
    assert matches(pattern, "model.layers.0.mlp.up_proj.weight") is found


@pytest.mark.parametrize(
    "pattern", [r"re:(\w|.)*(\w|.)*(\w|.)*!", "re:(a*)*b", "*a" * 60 + "b", "re:(.*)*(.*)*x!"]
)
def test_patterns_take_linear_time(pattern: str) -> None:
    names = ["a" * 200, "model.layers.0." + "a" * 200]
    started = time.monotonic()
    assert ignored([pattern], names) == set()
    assert time.monotonic() - started < 1


SIZES = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.integers(1, 10_000), min_size=1, max_size=12
)


@settings(max_examples=200, deadline=None)
@given(SIZES, st.floats(0.001, 0.999).map(lambda value: round(value, 4)))
def test_uniform_shares_are_exact_and_those_of_the_engine(sizes: dict[str, int], sparsity: float) -> None:
    from compression.allocation.uniform import Uniform

    total = remove_count(sparsity, sum(sizes.values()))
    counts = uniform_counts(sizes, total)
    assert sum(counts.values()) == total
    for name, size in sizes.items():
        assert 0 <= counts[name] <= size
        assert abs(counts[name] - total * size / sum(sizes.values())) <= 1
    free = {name: Bounds(0, size) for name, size in sizes.items()}
    sites = [SimpleNamespace(name=name) for name in sizes]
    evidence: Any = SimpleNamespace(sites=sites, units=sizes.get, bounds=free)
    assert Uniform().allocate(evidence, total) == counts


@settings(max_examples=200, deadline=None)
@given(SIZES, st.integers(0, 10), st.integers(0, 10), st.data())
def test_uniform_shares_keep_the_densities(
    sizes: dict[str, int], least: int, more: int, data: st.DataObject
) -> None:
    from compression.allocation.base import check_room
    from compression.allocation.uniform import Uniform

    minimum, maximum = least / 10, min(1.0, (least + more) / 10)
    bounds = {name: site_bounds(size, minimum, maximum) for name, size in sizes.items()}
    for size in sizes.values():
        bound = site_bounds(size, minimum, maximum)
        assert (size - bound.most) * 10 >= least * size
    lowest, highest = (sum(getattr(bound, end) for bound in bounds.values()) for end in ("least", "most"))
    total = data.draw(st.integers(lowest, highest))
    counts = uniform_counts(sizes, total, bounds)
    assert sum(counts.values()) == total
    for name, size in sizes.items():
        assert bounds[name].least <= counts[name] <= bounds[name].most
        assert abs(counts[name] - total * size / sum(sizes.values())) <= 1 + len(sizes)
    sites = [SimpleNamespace(name=name) for name in sizes]
    evidence: Any = SimpleNamespace(sites=sites, units=sizes.get, bounds=bounds)
    check_room(bounds, total)
    assert Uniform().allocate(evidence, total) == counts
    with pytest.raises(TargetUnreachable, match="minimum_density"):
        Uniform().allocate(evidence, highest + 1)
    if lowest:
        with pytest.raises(TargetUnreachable, match="maximum_density"):
            Uniform().allocate(evidence, lowest - 1)


def test_a_tenth_is_a_tenth() -> None:
    assert remove_count(0.1, 10**15 + 5) == 10**14 + 1
    assert remove_count(0.7, 10) == 7
    assert remove_count(0.5, 3) == 2


def resolved(inspection: Inspection, **changes: Any) -> JobSpecification:
    data = {
        "model": "mdl_1",
        "recipe": "wanda",
        "target": {"sparsity": 0.5},
        "calibration": {"dataset": "dst_1"},
    }
    return resolve(parse({**data, **changes}), catalogue.load(), inspection, TEXT)


def test_removals_with_ignored_sites(tmp_path: Path) -> None:
    inspection = look(tiny_llama(tmp_path))
    spec = resolved(inspection, target={"sparsity": 0.3}, structure={"ignore": ["*.down_proj"]})
    left = sum(site.size for site in inspection.sites if site.kind != "down")
    assert removed_in_all(spec, inspection) == remove_count(0.3, left)
    cut = plan(spec, inspection)["cut"]
    assert sum(row["remove"] for row in cut["sites"]) == cut["weights_removed"]
    assert not any("down_proj" in row["name"] for row in cut["sites"])


def test_removals_of_n_of_m(tmp_path: Path) -> None:
    inspection = look(tiny_llama(tmp_path))
    spec = resolved(inspection, target={"sparsity": 0.75}, structure={"granularity": "1:4"})
    for row in plan(spec, inspection)["cut"]["sites"]:
        rows, columns = row["shape"]
        assert row["keep"] == rows * columns // 4


@pytest.mark.parametrize("layers", [3, 6])
def test_numbers_of_layers(layers: int, tmp_path: Path) -> None:
    inspection = look(tiny_llama(tmp_path, layers=layers))
    for removed in range(1, layers):
        left = without_layers(inspection, removed)
        smaller = look(tiny_llama(tmp_path / str(removed), layers=layers - removed))
        assert replace(left, other_bytes=smaller.other_bytes) == smaller
        for target in (
            {"layers": removed},
            {"sparsity": round(removed / layers, 6)},
            {"parameters": smaller.parameters},
            {"parameters": smaller.parameters / inspection.parameters + 1e-9},
            {"bytes": smaller.bytes},
            {"macs": count_macs(smaller, 128).total},
            {"macs": count_macs(smaller, 128).total - 1 + 1},
        ):
            spec = resolved(inspection, recipe="layer-drop", target=target)
            assert layers_to_remove(spec, inspection) == removed, target


def test_bytes_count_the_type_that_is_written(tmp_path: Path) -> None:
    inspection = look(tiny_llama(tmp_path, layers=4))
    assert weight_bytes(inspection, "bfloat16") * 2 == weight_bytes(inspection, None) == inspection.bytes
    half = {"recipe": "layer-drop", "target": {"bytes": 0.6}}
    assert layers_to_remove(resolved(inspection, **half), inspection) == 4 - 1
    assert layers_to_remove(resolved(inspection, **half, output={"dtype": "bfloat16"}), inspection) == 1


def test_a_plan(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "dense", layers=4)
    inspection = look(folder)
    size = (folder / "model.safetensors").stat().st_size
    spec = resolved(inspection, recipe="layer-drop", target={"layers": 2})
    found = plan(spec, inspection)
    assert found["valid"]
    assert found["cut"]["layers_removed"] == 2
    assert found["dense"]["bytes"] == size
    smaller = tiny_llama(tmp_path / "pruned", layers=2)
    assert found["pruned"]["parameters"] == look(smaller).parameters
    assert found["pruned"]["macs"] == count_macs(look(smaller), 128).total
    assert abs(found["pruned"]["bytes"] - (smaller / "model.safetensors").stat().st_size) < 1024
    assert 0 < found["ratios"]["macs"] < 1
    assert found["estimate"]["seconds"] > 0
    assert "basis" in found["estimate"]


def test_a_plan_of_zeros_promises_no_speed(tmp_path: Path) -> None:
    inspection = look(tiny_llama(tmp_path))
    found = plan(resolved(inspection), inspection)
    assert found["ratios"]["bytes"] == found["ratios"]["macs"] == found["ratios"]["parameters"] == 1
    removed = inspection.prunable_parameters // 2
    assert found["dense"]["nonzeros"] - found["pruned"]["nonzeros"] == removed
    assert found["dense"]["macs_nonzero"] - found["pruned"]["macs_nonzero"] == 128 * removed
    assert any("neither" in note for note in found["notes"])


def test_a_plan_with_a_global_threshold_leaves_places_open(tmp_path: Path) -> None:
    inspection = look(tiny_llama(tmp_path))
    found = plan(resolved(inspection, options={"allocation": "global"}), inspection)
    assert all(row["remove"] is None for row in found["cut"]["sites"])
    assert found["cut"]["weights_removed"] == inspection.prunable_parameters // 2
    assert found["dense"]["nonzeros"] - found["pruned"]["nonzeros"] <= inspection.prunable_parameters // 2
