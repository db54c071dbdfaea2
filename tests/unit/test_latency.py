"""Tables of measured times, and what follows from them: interpolation, choices by brute force, refusals,
plans."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from compression import catalogue
from compression.anatomy.inspection import Inspection
from compression.anatomy.latency import (
    LatencyTable,
    Timing,
    never_falling,
    pair_tables,
    shape_key,
    timed_tokens,
)
from compression.anatomy.plan import plan
from compression.anatomy.timed import (
    NANOSECONDS,
    TimesMissing,
    target_budget,
    target_layers,
    target_widths,
)
from compression.anatomy.widths import counts, default_multiple
from compression.errors import SpecificationInvalid
from compression.resolve import resolve
from compression.specification import JobSpecification, parse
from tests.resolving import DATASETS, attempt, faults, inspections
from tests.timings import made_seconds, made_table
from tests.tiny_models import tiny_llama

WIDTH: dict[str, Any] = {"recipe": "magnitude-width", "calibration": None}
LAYER: dict[str, Any] = {"recipe": "layer-drop"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inspection]:
    from compression.loading.admission import admit_model, folder_sources

    root = tmp_path_factory.mktemp("models")
    wide = tiny_llama(root / "wide", hidden=48, heads=8, key_value_heads=4, ffn=96, layers=4)
    found = Inspection.from_json(admit_model(folder_sources(wide)).inspection)
    return {**inspections(root), "wide": found}


def _timing(inspection: Inspection, **changes: Any) -> Timing:
    table = made_table(inspection, **changes)
    return Timing(table, table)


def _refused(inspection: Inspection, timings: list[Timing], **changes: Any) -> dict[str, str]:
    data = {"model": "mdl_1", "calibration": {"dataset": "text"}, **changes}
    asked = parse({key: value for key, value in data.items() if value is not None})
    with pytest.raises(SpecificationInvalid) as caught:
        resolve(asked, catalogue.load(), inspection, DATASETS, timings)
    return {fault.pointer: fault.message for fault in caught.value.errors}


# -- tables


def test_between_widths_the_table_is_linear(models: dict[str, Inspection]) -> None:
    table = made_table(
        models["wide"], levels={"neuron": [[8, 0.004], [24, 0.005], [48, 0.0095], [96, 0.010]]}
    )
    measured = np.array(table.levels["neuron"])
    for kept in range(1, 97):
        wanted = np.interp(kept, measured[:, 0], measured[:, 1])
        assert table.level("neuron", kept) == pytest.approx(wanted, rel=1e-12)
    assert table.seconds(4) == pytest.approx(0.044)
    assert table.seconds(4, {"neuron": 24}) == pytest.approx(0.004 + 4 * 0.005)
    assert table.seconds(1) == pytest.approx(0.014)


def test_what_kinds_save_adds_up_and_layers_may_differ(models: dict[str, Inspection]) -> None:
    table, inspection = made_table(models["wide"]), models["wide"]
    widths = {"neuron": 24, "head": 2}
    assert table.seconds(4, widths) == pytest.approx(made_seconds(inspection, widths))
    different = {"neuron": [96, 48, 24, 96], "head": [4, 4, 1, 2]}
    alone = [
        made_seconds(inspection, {kind: row[layer] for kind, row in different.items()}, 1) - 0.004
        for layer in range(4)
    ]
    assert table.varied_seconds(4, different) == pytest.approx(0.004 + sum(alone))


def test_more_never_takes_less() -> None:
    """Against the formula of isotonic regression: the highest over what begins before of the lowest mean."""
    random = np.random.default_rng(0)
    for _ in range(50):
        values = random.standard_normal(7) + np.arange(7) / 3
        weights = random.uniform(0.5, 2, 7)
        wanted = [
            max(
                min(np.average(values[a : b + 1], weights=weights[a : b + 1]) for b in range(i, 7))
                for a in range(i + 1)
            )
            for i in range(7)
        ]
        assert never_falling(values, weights) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer": 0.0},
        {"layer": float("nan")},
        {"rest": -1.0},
        {"device": "x" * 300},
        {"device": "a\nb"},
        {"kind": "tpu"},
        {"shape": "../../etc"},
        {"levels": {"neuron": [[8, 0.2], [4, 0.3]]}},
        {"levels": {"neuron": [[4, 0.3], [8, 0.2]]}},
        {"levels": {"neuron": []}},
        {"levels": {"secret": [[4, 0.3]]}},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_no_table_is_refused(changes: dict[str, Any], models: dict[str, Inspection]) -> None:
    with pytest.raises(ValidationError):
        made_table(models["wide"], **changes)


def test_a_table_is_read_back_and_scaled(models: dict[str, Inspection]) -> None:
    table = made_table(models["wide"])
    assert LatencyTable.model_validate_json(table.model_dump_json()) == table
    timing = Timing(table, made_table(models["wide"], dtype="bfloat16"), "2026-11-21T00:00:00Z")
    assert Timing.from_json(timing.to_json()) == timing
    twice = table.scaled(2.0)
    assert twice.seconds(3, {"head": 2}) == pytest.approx(2 * table.seconds(3, {"head": 2}))
    assert twice.key == table.key
    assert made_table(models["wide"], threads=2).key != table.key != made_table(models["two"]).key


def test_models_of_one_shape_share_a_table(models: dict[str, Inspection], tmp_path: Path) -> None:
    assert len({shape_key(one) for one in models.values()}) >= 8
    # Weights, tokenizers and dtypes are not of the shape.
    assert shape_key(models["two"]) == shape_key(models["mute"]) == shape_key(models["half"])
    assert timed_tokens(models["long"]) == 256
    assert timed_tokens(models["encoder"]) == 64


def test_tables_are_paired_by_device_and_dtype(models: dict[str, Inspection]) -> None:
    inspection = models["half"]
    half, full = (made_table(inspection, dtype=dtype) for dtype in ("bfloat16", "float32"))
    other = made_table(inspection, dtype="bfloat16", device="Another", threads=4)
    tables = [(other, "3"), (full, "2"), (half, "1"), (made_table(models["wide"]), "0")]
    plain = attempt(inspection, **WIDTH, target={"sparsity": 0.5})
    assert [(t.dense, t.result, t.measured_at) for t in pair_tables(plain, inspection, tables)] == [
        (other, other, "3"), (half, half, "1"),
    ]  # fmt: skip
    wider = attempt(inspection, **WIDTH, target={"sparsity": 0.5}, output={"dtype": "float32"})
    assert [(t.dense, t.result) for t in pair_tables(wider, inspection, tables)] == [(half, full)]
    elsewhere = attempt(inspection, **WIDTH, target={"sparsity": 0.5}, queue="gpu")
    assert pair_tables(elsewhere, inspection, tables) == []


# -- choices


@pytest.mark.parametrize("granularity", ["neuron", "head", "neuron+head"])
@pytest.mark.parametrize("wanted", [0.9, 0.75, 0.6, "31ms", 0.45])
def test_widths_meet_a_latency_within_a_step(
    granularity: str, wanted: float | str, models: dict[str, Inspection]
) -> None:
    inspection, timing = models["wide"], _timing(models["wide"])
    spec = attempt(
        inspection, **WIDTH, target={"latency": wanted}, structure={"granularity": granularity}
    )  # fmt: skip
    goal = 0.031 if wanted == "31ms" else float(wanted) * made_seconds(inspection, {})
    found = target_widths(spec, inspection, timing)
    kinds = granularity.split("+")
    steps = [counts(one, spec) for one in inspection.structures if one.kind in kinds]
    kinds = [one.kind for one in inspection.structures if one.kind in kinds]
    possible = [
        widths
        for widths in (dict(zip(kinds, row, strict=True)) for row in itertools.product(*steps))
        if made_seconds(inspection, widths) <= goal + 1e-12
    ]
    if found is None:
        assert not possible
        return
    assert found in possible
    fine = kinds[0]
    more = [n for n in steps[0] if n > found[fine]]
    if more:
        assert made_seconds(inspection, {**found, fine: more[0]}) > goal, "one step more would do"


def test_layers_meet_a_latency(models: dict[str, Inspection]) -> None:
    inspection = models["decoder"]
    for wanted in (0.95, 0.8, 0.5, 0.3, 0.23):
        spec = attempt(inspection, **LAYER, target={"latency": wanted})
        goal = wanted * made_seconds(inspection, {})
        fewer = [gone for gone in range(1, 6) if made_seconds(inspection, {}, 6 - gone) <= goal]
        found = target_layers(spec, inspection, _timing(inspection))
        assert found == (fewer[0] if fewer else None)
        assert (spec.options["keep_first"], spec.options["keep_last"]) == (1, 1)


@pytest.mark.parametrize("wanted", [0.9, 0.6, 0.4])
def test_a_budget_of_nanoseconds_is_the_latency(wanted: float, models: dict[str, Inspection]) -> None:
    inspection, timing = models["wide"], _timing(models["wide"])
    spec = attempt(
        inspection, recipe="magnitude-width", target={"latency": wanted},
        options={"allocation": "knapsack"}, output={"layout": "packaged"},
    )  # fmt: skip
    budget = target_budget(spec, inspection, timing)
    assert budget.reachable
    random = np.random.default_rng(1)
    for _ in range(200):
        keep = {kind: random.choice(steps, 4).tolist() for kind, steps in budget.steps.items()}
        spent = sum(budget.spent(kind, n) for kind, row in keep.items() for n in row)
        over = timing.result.varied_seconds(4, keep) - timing.goal(spec, inspection)
        # A nanosecond for each unit comes on top.
        assert (spent - budget.total) / NANOSECONDS == pytest.approx(over, abs=1e-6)
    assert 0 < budget.share < 1


def test_without_a_table_nobody_guesses(models: dict[str, Inspection]) -> None:
    spec = attempt(models["wide"], **WIDTH, target={"latency": 0.5})
    for choice in (target_widths, target_budget, target_layers):
        with pytest.raises(TimesMissing):
            choice(spec, models["wide"])


@pytest.mark.parametrize(
    ("count", "queue", "multiple"),
    [(31, "cpu", 1), (32, "cpu", 8), (704, "cpu", 8), (704, "gpu", 64), (255, "gpu", 8), (16, "gpu", 1)],
)
def test_widths_are_rounder_on_a_gpu(
    count: int, queue: str, multiple: int, tmp_path: Path, models: dict[str, Inspection]
) -> None:
    from dataclasses import replace

    neuron = next(one for one in models["wide"].structures if one.kind == "neuron")
    assert default_multiple(replace(neuron, count=count), queue) == multiple
    head = next(one for one in models["wide"].structures if one.kind == "head")
    assert default_multiple(head, queue) == 1


# -- refusals


def test_what_cannot_be_a_target_of_latency(models: dict[str, Inspection]) -> None:
    def first(**changes: Any) -> tuple[str, str]:
        found = faults(models["wide"], target={"latency": 0.5}, **changes)[0]
        return found.pointer, found.message

    pointer, message = first(recipe="wanda")
    assert (pointer, "no faster with zeros" in message) == ("/target/latency", True)
    pointer, message = first(recipe="svd-llm", output={"layout": "packaged"})
    assert (pointer, "zeros" in message) == ("/target/latency", False)
    for granularity in ("hidden", "neuron+hidden"):
        pointer, message = first(**WIDTH, structure={"granularity": granularity})
        assert (pointer, "hidden channels" in message) == ("/target/latency", True)
    pointer, message = first(**WIDTH, evaluation={"measure": ["memory"]})
    assert (pointer, '"latency"' in message) == ("/evaluation/measure", True)
    pointer, message = first(
        recipe="finercut", options={"remove_parts": "only"}, output={"layout": "packaged"}
    )
    assert (pointer, "both their parts" in message) == ("/options/remove_parts", True)
    pointer, message = first(recipe="tyr", output={"layout": "padded"})
    assert (pointer, "hardly faster" in message) == ("/target/latency", True)


def test_what_no_known_device_reaches_is_refused_with_the_range(models: dict[str, Inspection]) -> None:
    inspection = models["wide"]
    slow, quick = _timing(inspection), _timing(inspection, device="Quick", rest=0.0)
    for changes in (
        {**WIDTH, "target": {"latency": 0.05}},
        {**LAYER, "target": {"latency": 0.05}},
        {"recipe": "tyr", "output": {"layout": "packaged"}, "target": {"latency": 0.05}},
    ):
        asked = {key: value for key, value in changes.items() if value is not None}
        message = _refused(inspection, [slow, quick], **asked)["/target/latency"]
        assert "A processor" in message
        assert "Reachable: ratios from 0." in message
        assert isinstance(attempt(inspection, **changes), JobSpecification), (
            "without a table the job measures"
        )
    # One device is enough.
    asked = parse({"model": "mdl_1", "recipe": "magnitude-width", "target": {"latency": 0.25}})
    assert _refused(inspection, [slow], recipe="magnitude-width", target={"latency": 0.25})
    resolve(asked, catalogue.load(), inspection, DATASETS, [slow, quick])


# -- plans


def test_a_plan_predicts_latency_on_every_known_device(models: dict[str, Inspection]) -> None:
    inspection = models["wide"]
    timings = [_timing(inspection), _timing(inspection, device="Another", layer=0.01, rest=0.001)]
    spec = attempt(inspection, **WIDTH, target={"parameters": 0.8})
    found = plan(spec, inspection, timings)
    widths = {kind: one["kept"] for kind, one in found["cut"]["widths"].items()}
    first, second = found["latency"]["predictions"]
    assert first["pruned"] == pytest.approx(made_seconds(inspection, widths))
    assert first["dense"] == pytest.approx(made_seconds(inspection, {}))
    assert (second["device"], second["tokens"], second["batch"]) == ("Another", 128, 1)
    dropped = attempt(inspection, **LAYER, target={"layers": 1})
    assert plan(dropped, inspection, timings)["latency"]["predictions"][0]["pruned"] == pytest.approx(0.034)
    zeros = attempt(inspection, target={"sparsity": 0.5})
    assert plan(zeros, inspection, timings)["latency"]["predictions"][0]["ratio"] == 1.0


def test_a_plan_for_a_latency_says_the_shapes(models: dict[str, Inspection]) -> None:
    inspection = models["wide"]
    spec = attempt(inspection, **WIDTH, target={"latency": 0.6})
    found = plan(spec, inspection, [_timing(inspection)])
    assert found["latency"]["predictions"][0]["ratio"] <= 0.6
    assert found["cut"]["shape"]["ffn"] == found["cut"]["widths"]["neuron"]["kept"]
    varied = attempt(
        inspection, recipe="tyr", target={"latency": 0.6}, output={"layout": "packaged"}
    )  # fmt: skip
    shared = plan(varied, inspection, [_timing(inspection)])["latency"]["predictions"][0]
    assert shared["ratio"] == pytest.approx(0.6, abs=0.05)


def test_a_plan_without_a_table_says_why(models: dict[str, Inspection]) -> None:
    inspection = models["wide"]
    plain = plan(attempt(inspection, **WIDTH, target={"macs": 0.8}), inspection)
    assert plain["latency"]["predictions"] == []
    assert "timed" in plain["latency"]["reason"]
    assert plain["pruned"]["macs"] > 0
    hidden = {**WIDTH, "structure": {"granularity": "neuron+hidden"}, "target": {"macs": 0.8}}
    lower = {"recipe": "svd-llm", "target": {"macs": 0.8}, "output": {"layout": "packaged"}}
    for untimed in (hidden, lower):
        told = plan(attempt(inspection, **untimed), inspection, [_timing(inspection)])["latency"]
        assert (told["predictions"], "hidden channels" in told["reason"]) == ([], True)
    aimed = plan(attempt(inspection, **WIDTH, target={"latency": 0.8}), inspection)
    assert (aimed["valid"], aimed["pruned"], aimed["ratios"]) == (True, None, {})
    assert aimed["dense"]["macs"] == plain["dense"]["macs"]
