"""Jobs on graphs by latency, by knapsack and above floors, and what their reports say of slow layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from compression import pipeline
from compression.errors import SpecificationInvalid, TargetUnreachable
from compression.graphs.batches import Batch, cross_entropy
from compression.graphs.dependencies import analyse
from compression.graphs.graph import read_graph
from compression.graphs.layer_shapes import LayerModel
from compression.graphs.masking import mask
from compression.graphs.tasks import tasks_of
from compression.report.html import render
from compression.report.schema import validate
from compression.stages.graphs.blame import behind, slow_layers
from tests.engine.graphs.exports import stored
from tests.engine.graphs.samples import floats, model_of
from tests.engine.graphs.test_graph_data_jobs import SEEN
from tests.engine.graphs.test_graph_jobs import job, ran
from tests.engine.jobs import Recorder, request


def wide(folder: Path, **wanted: Any) -> Path:
    """A job on a network whose layers take long enough to be told apart."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["k"]),
        helper.make_node("Conv", ["k", "b"], ["p"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "c"], ["r"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["r"], ["s"]),
        helper.make_node("Conv", ["s", "d"], ["y"]),
    ]
    weights = {
        "a": floats(64, 3, 3, 3),
        "b": floats(64, 64, 3, 3),
        "c": floats(64, 64, 3, 3),
        "d": floats(4, 64, 1, 1),
    }
    small = {key: one / 8 for key, one in weights.items()}
    model = model_of(nodes, {"x": floats(1, 3, 24, 24)}, ["y"], small)
    job(folder, **wanted)
    onnx.save(model, folder / "model" / "network.onnx")
    return folder


def widths(path: Path) -> list[int]:
    return [
        numpy_helper.to_array(one).shape[0] for one in onnx.load(path).graph.initializer if one.name in "abc"
    ]


def test_a_latency_is_aimed_at_by_times_that_later_jobs_read(tmp_path: Path) -> None:
    wanted = {"target": {"latency": 0.7}, "evaluation": {"measure": ["latency"]}, "recipe": "group-l2"}
    folder = wide(tmp_path, options={"allocation": "knapsack"}, **wanted)
    asked = replace(request(folder, tmp_path / "one"), cache=tmp_path / "cache")
    assert asked.specification.options["channel_multiple"] == 8
    recorder = Recorder()
    outcome = pipeline.run(asked, recorder)
    report = json.loads(outcome.report.read_text())
    validate(report)
    promised = report["latency"]["predicted"]
    assert 0 < promised["pruned"] <= promised["aimed"] == pytest.approx(0.7 * promised["dense"])
    assert report["target"]["aimed"] == promised["aimed"]
    assert report["target"]["ratio"] == report["latency"]["ratio"]
    assert "the times of layers promised" in " ".join(report["notes"])
    kept = widths(outcome.artifact / "network.onnx")
    assert all(one % 8 == 0 for one in kept)
    assert min(kept) < 64
    (table,) = (tmp_path / "cache").glob("layers-*.json")
    times = json.loads(table.read_text())
    assert all(one > 0 for one in times.values())
    again = Recorder()
    pipeline.run(replace(asked, work=tmp_path / "two"), again)
    assert any("0 shapes of layers were timed" in line for line in again.messages)
    assert set(json.loads(table.read_text())) >= set(times)


def test_a_latency_beyond_reach_says_what_can_be_reached(tmp_path: Path) -> None:
    folder = wide(tmp_path, target={"latency": "1us"})
    with pytest.raises(TargetUnreachable, match=r"latency of at most 0\.001 ms .* at least \S+ ms of \S+ ms"):
        ran(folder)


def test_times_are_known_of_multiples_of_eight(tmp_path: Path) -> None:
    folder = wide(tmp_path, target={"latency": 0.7}, options={"channel_multiple": 12})
    with pytest.raises(SpecificationInvalid, match="multiples of 8"):
        request(folder, tmp_path / "work")
    other = wide(tmp_path / "other", target={"macs": 0.7}, options={"channel_multiple": 12})
    assert request(other, tmp_path / "work").specification.options["channel_multiple"] == 12


@pytest.mark.parametrize("target", [{"macs": 0.6}, {"parameters": 0.6}, {"bytes": 0.6}])
def test_a_knapsack_meets_targets_of_all_kinds(tmp_path: Path, target: dict[str, float]) -> None:
    report, _, _ = ran(job(tmp_path, "option-a", target=target, options={"allocation": "knapsack"}))
    (kind,) = target
    assert report["cost"]["pruned"][kind] <= 0.6 * report["cost"]["dense"][kind]
    assert report["target"]["ratio"] > 0.5


def test_knapsack_kd_and_pagcp_run(tmp_path: Path) -> None:
    for recipe, options in (("knapsack-kd", {}), ("pagcp", {"floor_rise": 0.5})):
        evaluation = {**SEEN["evaluation"], "baselines": ["magnitude"]}
        wanted = {**SEEN, "evaluation": evaluation, "options": options, "target": {"macs": 0.7}}
        report, _, _ = ran(job(tmp_path / recipe, recipe=recipe, **wanted))
        assert report["cost"]["pruned"]["macs"] <= 0.7 * report["cost"]["dense"]["macs"]
        assert [one["name"] for one in report["baselines"]] == ["magnitude"]


def test_floors_that_hold_are_told(tmp_path: Path) -> None:
    options = {"floor_rise": 1e-6, "floor_rounds": 1}
    folder = job(tmp_path, recipe="pagcp", options=options, target={"macs": 0.3}, **SEEN)
    why = r"of the macs stay after 1 rounds.*would get worse than its floor"
    with pytest.raises(TargetUnreachable, match=why):
        ran(folder)


def test_floors_need_images(tmp_path: Path) -> None:
    with pytest.raises(SpecificationInvalid, match="looks at images"):
        request(job(tmp_path, "vit", recipe="pagcp"), tmp_path / "work")


def test_tasks_are_classes_or_distances() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["k"]),
        helper.make_node("GlobalAveragePool", ["k"], ["p"]), helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "b"], ["one"]), helper.make_node("Conv", ["k", "c"], ["two"]),
    ]  # fmt: skip
    weights = {"a": floats(8, 3, 1, 1), "b": floats(8, 5), "c": floats(2, 8, 1, 1)}
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["one", "two"], weights)))
    labels = torch.tensor([0, 4, 2])
    batches = [Batch({"x": torch.from_numpy(floats(3, 3, 4, 4, seed=seed))}, labels) for seed in range(2)]
    chosen = {"a:0": [1, 5]}
    with torch.no_grad():
        dense = [mask(found, {}).module().run(batch.inputs) for batch in batches]
        small = [mask(found, chosen).module().run(batch.inputs) for batch in batches]
    first, second = tasks_of(found, batches, 0.1)
    assert (first.name, second.name, first.rise) == ("one", "two", 0.1)
    torch.testing.assert_close(
        first.loss(small[0], batches[0]), cross_entropy({"one": small[0]["one"]}, batches[0])
    )
    energy = np.mean([np.square(one["two"].numpy().astype(np.float64)) for one in dense])
    apart = np.square((small[1]["two"] - dense[1]["two"]).numpy().astype(np.float64)).mean((1, 2, 3))
    np.testing.assert_allclose(second.loss(small[1], batches[1]).numpy(), 1 + apart / energy, rtol=1e-6)
    unlabelled = [Batch(batch.inputs) for batch in batches]
    for task, output in zip(tasks_of(found, unlabelled, 0.1), ("one", "two"), strict=True):
        assert task.name == output
        torch.testing.assert_close(task.loss(dense[0], unlabelled[0]), torch.ones(3, dtype=torch.float64))


def test_layers_that_did_not_get_faster_are_named(tmp_path: Path) -> None:
    """Times by rule: what is no multiple of eight takes thrice as long, and nothing is under ten
    microseconds."""
    assert behind(0.8, 0.5)
    assert not behind(0.6, 0.5)
    assert not behind(None, 0.1)
    anatomy = analyse(read_graph(stored("option-a")))
    layers = LayerModel(anatomy)
    first, *rest = (group for group in anatomy.groups if group.units > 8)
    units = {first.name: list(range(first.units // 2 - 1))}
    if rest:
        units[rest[-1].name] = list(range(rest[-1].units // 2))
    dense, pruned = layers.shapes({}), layers.shapes(units)
    table = {
        shape.key: max(1e-5, 1e-9 * shape.macs * (3 if any(one % 8 for one in shape.channels) else 1))
        for shape in (*dense.values(), *pruned.values())
    }
    found = slow_layers(dense, pruned, table, (1.0, 0.9))
    assert found["timed"] == len(dense)
    assert found["pruned_seconds"] == pytest.approx(sum(table[one.key] for one in pruned.values()))
    assert found["beside"][0] == pytest.approx(1.0 - found["dense_seconds"])
    assert any("no multiple of 8" in one["reason"] for one in found["shapes"])
    for one in found["shapes"]:
        assert one["pruned_seconds"] / one["dense_seconds"] > one["pruned_macs"] / one["dense_macs"]
    assert slow_layers(dense, dense, table, (1.0, 1.0))["shapes"] == []
    report, _, _ = ran(job(tmp_path, "option-a"))
    assert report["graph"]["slow"] is None
    report["graph"]["slow"] = found
    validate(report)
    assert "slower than its multiply-accumulates promise" in render(report)
