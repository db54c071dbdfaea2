"""Recoveries of graphs: statistics as torch measures them, training that goes on after a kill, what is
refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.checkpoint import Store
from compression.errors import RecoveryImpossible
from compression.evaluation.types import Batch
from compression.graphs.cutting import cut
from compression.graphs.dependencies import analyse
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph
from compression.graphs.pruning import choose_units
from compression.loading.images.plan import ImagePlan
from compression.loading.images.streaming import StreamedImages
from compression.preprocessing import of_model
from compression.recovery.graphs import graph_recoveries
from compression.recovery.graphs.base import GraphRecoveryContext, GraphRecoveryResult
from compression.recovery.graphs.distillation import GraphTrainingOptions, maker, one_by_one, plan_of
from compression.recovery.training import Plan, split
from compression.stages.graphs.recover import inner_values
from tests.engine.graphs.trainable import CLASSES, small_resnet
from tests.pictures import write_npz

COUNT = 60


class Recorder:
    """An observer that remembers; it stops the run after a number of steps when told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.steps = stop_after, list[int]()

    def progress(self, done: int, total: int) -> None:
        self.steps.append(done)
        if done == self.stop_after:
            raise KeyboardInterrupt

    def log(self, message: str) -> None:
        raise AssertionError(message)

    def metric(self, name: str, value: float) -> None:
        assert np.isfinite(value)


def images(folder: Path, *, labelled: bool = True) -> StreamedImages:
    """Noise, brighter where the class says."""
    chance = np.random.default_rng(0)
    pixels = chance.integers(0, 150, (COUNT, 8, 8, 3))
    labels = [number % CLASSES for number in range(COUNT)]
    for image, label in zip(pixels, labels, strict=True):
        image[label * 2 : label * 2 + 2] += 100
    folder.mkdir(exist_ok=True)
    path = write_npz(folder / "images.npz", pixels.astype(np.uint8), labels if labelled else None)
    names = {"id2label": {number: str(number) for number in range(CLASSES)}}
    return ImagePlan(names, 3, of_model(8, 8), {"d": path}).streamed("d", COUNT, 0)


def context(
    folder: Path, method: str = "distillation", tag: str = "a", **changes: Any
) -> GraphRecoveryContext:
    dense = small_resnet()
    anatomy = analyse(dense)
    units = choose_units(anatomy, 0.6, "group-l2")
    smaller = cut(anatomy, units)
    settings: dict[str, Any] = {
        "method": method,
        "options": {"batch_size": 8, "evaluate_every": 4, "save_every": 4}
        if method == "distillation"
        else {},
        "steps": 12,
        "seed": 3,
        "graph": smaller,
        "dense": dense,
        "data": images(folder / "data"),
        "store": Store(folder / tag, "key"),
        "observer": Recorder(),
        "inner": inner_values(anatomy, units, smaller),
    }
    return GraphRecoveryContext(**(settings | changes))


def recover(given: GraphRecoveryContext) -> GraphRecoveryResult:
    return graph_recoveries[given.method].recover(given)


def same(first: Graph, second: Graph) -> bool:
    return all(np.array_equal(array, second.initializers[name]) for name, array in first.initializers.items())


class Torch(nn.Module):
    """The small network with torch's own layers, in float64, averaging statistics over the batches."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.weights = {name: torch.from_numpy(np.array(one)) for name, one in graph.initializers.items()}
        self.norms = nn.ModuleDict()
        for name in ("n0", "n1", "n2"):
            width = len(self.weights[f"{name}.scale"])
            self.norms[name] = nn.BatchNorm2d(width, momentum=None, dtype=torch.float64)
            self.norms[name].weight.data = self.weights[f"{name}.scale"].double()
            self.norms[name].bias.data = self.weights[f"{name}.bias"].double()

    def layer(self, one: str, norm: str, x: Tensor) -> Tensor:
        return self.norms[norm](nn.functional.conv2d(x, self.weights[one].double(), padding=1))

    def forward(self, x: Tensor) -> None:
        h = self.layer(
            "stem", "n0", (x - self.weights["shift"].double()) * self.weights["half"].double()
        ).relu()
        self.layer("two", "n2", self.layer("one", "n1", h).relu())


class Noting(StreamedImages):
    """Remembers which images were asked for."""

    asked: list[list[int]]

    def batch(self, indices: Sequence[int]) -> Batch:
        self.asked.append(list(indices))
        return super().batch(indices)


@pytest.mark.parametrize("steps", [3, 50])
def test_statistics_are_torchs_cumulative_average(tmp_path: Path, steps: int) -> None:
    given = context(tmp_path, "batchnorm", steps=steps, options={"batch_size": 16}, threads=1)
    given.data.__class__ = Noting
    given.data.asked = []  # type: ignore[attr-defined]
    result = recover(given)
    reference = Torch(given.graph).train()
    asked: list[list[int]] = given.data.asked  # type: ignore[attr-defined]
    assert [len(one) for one in asked] == [16] * 3
    assert len({number for one in asked for number in one}) == 48
    with torch.no_grad():
        for indices in asked:
            reference(StreamedImages.batch(given.data, indices)["pixel_values"].double())
    arrays = result.graph.initializers
    for name, norm in reference.norms.items():
        assert np.allclose(arrays[f"{name}.mean"], norm.running_mean.numpy(), atol=1e-5)
        assert np.allclose(arrays[f"{name}.var"], norm.running_var.numpy(), rtol=1e-4)
    for name in set(arrays) - {f"{name}.{part}" for name in reference.norms for part in ("mean", "var")}:
        assert np.array_equal(arrays[name], given.graph.initializers[name])
    assert result.history["training_samples"] == 48


def test_training_comes_nearer_to_the_dense_graph(tmp_path: Path) -> None:
    result = recover(context(tmp_path, steps=40))
    curve = [point["held_out"] for point in result.history["curve"]]
    assert result.history["best_step"] > 0
    assert min(curve) < 0.8 * curve[0]
    assert result.history["held_out_samples"] == 6
    assert result.history["statistics"]["images"] == 48
    assert 0 <= result.history["loading"]["waited_share"] <= 1
    assert {name: array.shape for name, array in result.graph.initializers.items()} == {
        name: array.shape for name, array in context(tmp_path).graph.initializers.items()
    }


@pytest.mark.parametrize("options", [{"loss": "task"}, {"optimiser": "adamw"}, {"feature_weight": 2.0}])
def test_ways_of_training_lower_their_loss(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"batch_size": 16, "evaluate_every": 10, "warmup": 0.0, **options}
    curve = recover(context(tmp_path, steps=40, options=options)).history["curve"]
    assert min(point["held_out"] for point in curve) < curve[0]["held_out"]


@pytest.mark.parametrize("stop_after", [1, 5, 9])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    options = {
        "batch_size": 8, "evaluate_every": 3, "save_every": 4, "flip": True, "jitter": 0.2, "cutout": 0.3,
    }  # fmt: skip
    whole = recover(context(tmp_path, tag="whole", options=options))
    # Fewer images than the steps need: epochs differ.
    assert 12 * 8 > whole.history["training_samples"]
    with pytest.raises(KeyboardInterrupt):
        recover(context(tmp_path, tag="cut", options=options, observer=Stopped(stop_after)))
    rest = recover(context(tmp_path, tag="cut", options=options, threads=4))
    assert same(whole.graph, rest.graph)
    assert whole.history["curve"] == rest.history["curve"]
    again = recover(context(tmp_path, tag="cut", options=options, steps=12))
    assert same(whole.graph, again.graph)
    assert not same(whole.graph, recover(context(tmp_path, tag="other", options=options, seed=4)).graph)


class Stopped(Recorder):
    """Stops at a step of the training, not of the statistics before it."""

    def progress(self, done: int, total: int) -> None:
        if total == 12:
            super().progress(done, total)


def test_every_image_comes_once_an_epoch_and_as_in_that_epoch(tmp_path: Path) -> None:
    given = context(tmp_path)
    options = GraphTrainingOptions(batch_size=8)
    plan = plan_of(given, options)
    training, held = split(COUNT, plan)
    seen: list[tuple[int, int]] = []

    class Asked:
        def augmented(self, indices: Sequence[int], epochs: Sequence[int], *rest: Any) -> Batch:
            seen.extend(zip(epochs, indices, strict=True))
            return {}

    make = maker(replace(given, data=Asked()), options, plan, training)  # type: ignore[arg-type]
    for step in range(27):
        make(step)
    assert seen == sorted(seen, key=lambda one: one[0])
    for epoch in range(3):
        assert sorted(number for one, number in seen if one == epoch) == training
    assert not set(held) & {number for _, number in seen}


def test_values_inside_are_those_that_both_graphs_compute(tmp_path: Path) -> None:
    given = context(tmp_path)
    assert [one.value for one in given.inner] == ["h", "m"]
    x = {"x": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    names = [one.value for one in given.inner]
    with torch.no_grad():
        dense = GraphModule(given.dense).eval().run(x, names)
        smaller = GraphModule(given.graph).eval().run(x, names)
    for one in given.inner:
        value = dense[one.value]
        for axis, places in one.kept.items():
            value = value.index_select(axis, torch.from_numpy(places))
        assert value.shape == smaller[one.value].shape
    # The stem reads the image alone: what is left of it is what it was.
    kept = torch.from_numpy(given.inner[0].kept[1])
    assert torch.allclose(dense["h"][:, kept], smaller["h"], atol=1e-6)


def test_samples_alone_give_the_same_loss_and_gradient() -> None:
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    batch = {"pixel_values": torch.randn(5, 3, dtype=torch.float64), "labels": torch.tensor([0, 3, 1, 1, 2])}

    def loss(given: Batch) -> Tensor:
        return nn.functional.cross_entropy(given["pixel_values"] @ weight, given["labels"])

    found = [torch.autograd.grad(one(batch), weight)[0] for one in (loss, one_by_one(loss))]
    assert torch.allclose(*found)


def test_graphs_of_one_image_train_with_their_statistics_as_they_are(tmp_path: Path) -> None:
    given = context(tmp_path, batch=1, steps=4)
    result = recover(given)
    assert "statistics" not in result.history
    assert np.array_equal(result.graph.initializers["n1.mean"], given.graph.initializers["n1.mean"])
    assert result.history["curve"][-1]["held_out"] is not None


def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecoveryImpossible, match="free batch"):
        recover(context(tmp_path, batch=4))
    with pytest.raises(RecoveryImpossible, match="too few to measure"):
        recover(context(tmp_path, "batchnorm", batch=4))
    unlabelled = images(tmp_path / "unlabelled", labelled=False)
    with pytest.raises(RecoveryImpossible, match="needs a recovery dataset with labels"):
        recover(context(tmp_path, options={"loss": "task"}, data=unlabelled))
    given = context(tmp_path, "batchnorm")
    nodes = tuple(node for node in given.graph.nodes if node.operator != "BatchNormalization")
    with pytest.raises(RecoveryImpossible, match='the update "moments"'):
        recover(replace(given, graph=replace(given.graph, nodes=nodes)))
    with pytest.raises(RecoveryImpossible, match="give more images"):
        recover(context(tmp_path, "batchnorm", batch=64))


def test_no_more_is_held_out_than_is_asked_for() -> None:
    plan = Plan(steps=1, batch_size=1, learning_rate=1.0)
    assert [len(split(20_000, one)[1]) for one in (plan, replace(plan, held_out_most=512))] == [64, 512]
