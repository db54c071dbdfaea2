"""Units go as long as no task gets worse than it may."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from onnx import helper
from torch import Tensor

from compression.errors import TargetUnreachable
from compression.graphs.allocation import Budget
from compression.graphs.batches import Batch, BatchInvalid
from compression.graphs.costs import CostModel
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.floors import Floors, Task, choose_above_floors
from compression.graphs.graph import read_graph
from compression.graphs.masking import mask
from compression.graphs.pruning import score_units
from tests.engine.graphs.samples import floats, model_of


def two_heads() -> Anatomy:
    """A trunk, and two branches of their own."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["k"]),
        helper.make_node("Conv", ["k", "b"], ["p"]), helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "c"], ["one"]),
        helper.make_node("Conv", ["k", "d"], ["r"]), helper.make_node("Relu", ["r"], ["s"]),
        helper.make_node("Conv", ["s", "e"], ["two"]),
    ]  # fmt: skip
    weights = {
        "a": floats(8, 3, 1, 1), "b": floats(12, 8, 1, 1), "c": floats(2, 12, 1, 1),
        "d": floats(12, 8, 1, 1), "e": floats(2, 12, 1, 1),
    }  # fmt: skip
    return analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 4, 4)}, ["one", "two"], weights)))


FOUND = two_heads()
BATCHES = [Batch({"x": torch.from_numpy(floats(6, 3, 4, 4, seed=seed))}) for seed in range(2)]
with torch.no_grad():
    DENSE = [mask(FOUND, {}).module().run(batch.inputs) for batch in BATCHES]


def task(output: str, rise: float) -> Task:
    """One more than the squared distance to the dense output."""

    def loss(outputs: Mapping[str, Tensor], batch: Batch) -> Tensor:
        place = next(place for place, one in enumerate(BATCHES) if one is batch)
        return 1 + (outputs[output] - DENSE[place][output]).square().flatten(1).mean(1)

    return Task(output, loss, rise)


def loss_of(chosen: dict[str, list[int]], one: Task) -> float:
    module = mask(FOUND, chosen).module()
    with torch.no_grad():
        return float(torch.cat([one.loss(module.run(batch.inputs), batch) for batch in BATCHES]).mean())


def test_the_task_with_the_tight_floor_keeps_its_branch() -> None:
    tasks = [task("one", 1e-3), task("two", 1000.0)]
    scores = score_units(FOUND, "group-l1")
    chosen = choose_above_floors(FOUND, scores, BATCHES, tasks, Budget(0.75), Floors(rounds=1))
    model = CostModel(FOUND)
    assert model.without(chosen).macs <= 0.75 * model.without({}).macs
    assert loss_of(chosen, tasks[0]) <= 1 + 1e-3 + 1e-6
    assert set(chosen) == {"d:0"}


def test_floors_are_relaxed_until_the_budget_is_met() -> None:
    tasks = [task("one", 0.05), task("two", 0.05)]
    scores = score_units(FOUND, "group-l1")
    with pytest.raises(TargetUnreachable, match=r"after 1 rounds.*the task '(one|two)' would get worse"):
        choose_above_floors(FOUND, scores, BATCHES, tasks, Budget(0.5), Floors(rounds=1))
    chosen = choose_above_floors(FOUND, scores, BATCHES, tasks, Budget(0.5), Floors(rounds=20))
    model = CostModel(FOUND)
    assert model.without(chosen).macs <= 0.5 * model.without({}).macs
    with pytest.raises(BatchInvalid, match="one batch and one task"):
        choose_above_floors(FOUND, scores, BATCHES, [], Budget(0.5))
