"""BatchNorms behind convolutions while a graph is trained: they change nothing, and are folded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.checkpoint import Store
from compression.graphs.batches import Batch, BatchInvalid
from compression.graphs.cutting import cut
from compression.graphs.dependencies import analyse
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph
from compression.graphs.pruning import choose_units
from compression.graphs.training import GraphTrained
from compression.graphs.unfolding import fold, folded_convolutions, measure, unfold
from compression.recovery.graphs import graph_recoveries
from compression.recovery.graphs.base import GraphRecoveryContext
from compression.stages.graphs.recover import inner_values
from tests.engine.graphs.test_graph_recovery import COUNT, Recorder, images, same
from tests.engine.graphs.trainable import small_resnet


def folded(dtype: str = "float32") -> Graph:
    """The small network as exporters leave it: biases where BatchNorms were."""
    graph = small_resnet(dtype=dtype)
    arrays, nodes = dict(graph.initializers), []
    for node in graph.nodes:
        if node.operator == "BatchNormalization":
            weight, bias = nodes.pop().inputs[1], f"{node.value}.bias"
            scale = arrays[node.inputs[1]]
            arrays[weight] = (arrays[weight] * scale[:, None, None, None]).astype(dtype)
            arrays[bias] = arrays[node.inputs[2]]
            source = graph.producers()[node.inputs[0]]
            node = replace(source, inputs=(*source.inputs, bias), outputs=node.outputs)
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes), initializers=arrays).without_dead_parts()


def batches(dtype: torch.dtype = torch.float32) -> list[Batch]:
    draw = torch.Generator().manual_seed(1)
    return [Batch({"x": torch.randn(size, 3, 8, 8, generator=draw).to(dtype)}) for size in (5, 8, 3)]


def outputs(graph: Graph, given: Batch, *, names: tuple[str, ...] = ()) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(GraphModule(graph).eval().run(given.inputs, names or ("y",)))


def test_statistics_are_those_of_all_values_together() -> None:
    graph, given = folded(), batches()
    found = measure(graph, given)
    assert sorted(found) == ["b0", "b1", "b2"]
    for name, (mean, variance) in found.items():
        values = torch.cat([outputs(graph, one, names=(name,))[name].double() for one in given])
        assert torch.allclose(mean, values.mean((0, 2, 3)))
        assert torch.allclose(variance, values.var((0, 2, 3), correction=0))
    with pytest.raises(BatchInvalid, match="at least one batch"):
        measure(graph, [])


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("float64", 1e-12), ("float16", 2e-2)])
def test_putting_in_and_folding_change_nothing(dtype: str, near: float) -> None:
    graph, given = folded(dtype), batches(getattr(torch, dtype))
    unfolded = unfold(graph, measure(graph, given))
    assert sum(node.operator == "BatchNormalization" for node in unfolded.nodes) == 3
    back = fold(unfolded, graph)
    assert [node.operator for node in back.nodes] == [node.operator for node in graph.nodes]
    assert {name: array.dtype for name, array in back.initializers.items()} == {
        name: array.dtype for name, array in graph.initializers.items()
    }
    wanted = outputs(graph, given[1], names=("b1", "y"))
    for other in (unfolded, back):
        found = outputs(other, given[1], names=("b1", "y"))
        for name, value in wanted.items():
            assert torch.allclose(found[name].double(), value.double(), atol=near * float(value.abs().max()))


def test_what_was_learnt_is_folded() -> None:
    graph, given = folded(), batches()
    trained = GraphTrained(unfold(graph, measure(graph, given)))
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for one in (*trained.masters.values(), *trained.buffers.values()):
            one.mul_(0.7 + 0.6 * torch.rand(one.shape, generator=draw))
    learnt = trained.graph()
    wanted, found = (outputs(one, given[0])["y"] for one in (learnt, fold(learnt, graph)))
    assert torch.allclose(wanted, found, atol=1e-5)


def test_a_channel_that_is_always_the_same_stays_as_it_is() -> None:
    graph, given = folded(), batches()
    arrays = dict(graph.initializers)
    arrays["one"] = arrays["one"].copy()
    arrays["one"][2] = 0.0
    graph = replace(graph, initializers=arrays)
    unfolded = unfold(graph, measure(graph, given))
    assert torch.allclose(outputs(unfolded, given[0])["y"], outputs(graph, given[0])["y"], atol=1e-5)


def test_only_convolutions_that_may_have_had_a_norm_get_one() -> None:
    assert folded_convolutions(small_resnet()) == []
    graph = folded()
    assert [node.value for node in folded_convolutions(graph)] == ["b0", "b1", "b2"]
    bare = replace(
        graph,
        nodes=tuple(
            replace(node, inputs=node.inputs[:2]) if node.value == "b1" else node for node in graph.nodes
        ),
    )
    assert [node.value for node in folded_convolutions(bare)] == ["b0", "b2"]
    shared = replace(
        graph,
        nodes=tuple(
            replace(node, inputs=(node.inputs[0], node.inputs[1], "b0.bias")) if node.value == "b2" else node
            for node in graph.nodes
        ),
    )
    assert [node.value for node in folded_convolutions(shared)] == ["b1"]


def context(folder: Path, tag: str, **changes: Any) -> GraphRecoveryContext:
    dense = folded()
    anatomy = analyse(dense)
    units = choose_units(anatomy, 0.6, "group-l2")
    smaller = cut(anatomy, units)
    settings: dict[str, Any] = {
        "method": "distillation",
        "options": {"batch_size": 8, "evaluate_every": 4, "save_every": 4},
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


def test_recovery_gives_a_graph_of_the_same_nodes(tmp_path: Path) -> None:
    given = context(tmp_path, "a", steps=40)
    result = graph_recoveries["distillation"].recover(given)
    assert result.graph.nodes == given.graph.nodes
    assert {name: one.shape for name, one in result.graph.initializers.items()} == {
        name: one.shape for name, one in given.graph.initializers.items()
    }
    curve = [point["held_out"] for point in result.history["curve"]]
    assert min(curve) < 0.8 * curve[0]
    assert result.history["statistics"]["unfolded"] == 3
    plain = context(tmp_path, "b", options={**given.options, "unfold": False})
    assert "statistics" not in graph_recoveries["distillation"].recover(plain).history


class Stopped(Recorder):
    """Stops at a step of the training."""

    def progress(self, done: int, total: int) -> None:
        if total == 12:
            super().progress(done, total)


@pytest.mark.parametrize("stop_after", [1, 6, 9])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    recover = graph_recoveries["distillation"].recover
    whole = recover(context(tmp_path, "whole"))
    assert whole.history["training_samples"] < COUNT
    with pytest.raises(KeyboardInterrupt):
        recover(context(tmp_path, "cut", observer=Stopped(stop_after)))
    rest = recover(context(tmp_path, "cut"))
    assert same(whole.graph, rest.graph)
    assert not same(whole.graph, context(tmp_path, "x").graph)


@pytest.mark.parametrize("unfold", [True, False])
def test_weights_that_went_stay_zero(tmp_path: Path, unfold: bool) -> None:
    plain = context(tmp_path, "a")
    arrays = dict(plain.graph.initializers)
    masks = {}
    for name in ("one", "two"):
        masks[name] = np.abs(arrays[name]) > np.median(np.abs(arrays[name]))
        arrays[name] = arrays[name] * masks[name]
    options = {**plain.options, "unfold": unfold}
    given = context(
        tmp_path, "b", graph=replace(plain.graph, initializers=arrays), masks=masks, options=options
    )
    result = graph_recoveries["distillation"].recover(given).graph
    for name, kept in masks.items():
        assert not result.initializers[name][~kept].any()
        assert not np.array_equal(result.initializers[name], arrays[name])
