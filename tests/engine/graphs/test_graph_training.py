"""Graphs in training: weights and statistics, losses, optimisers, hooks, and going on after a kill."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from compression.errors import RecoveryImpossible
from compression.graphs.batches import BatchInvalid
from compression.graphs.graph import Graph, read_graph
from compression.graphs.losses import Inner, Objective, objective_loss
from compression.graphs.training import GraphTrained, watching, weights_of
from compression.recovery.optimisers import sgd
from compression.recovery.training import Hook, Plan, Trainer
from tests.engine.graphs.exports import stored
from tests.engine.graphs.networks import NETWORKS, samples
from tests.engine.graphs.trainable import Memory, Pictures, Silent, read, small_resnet

LABELS = Objective(labels=1.0, dense=0.0)
PLAN = Plan(
    steps=12, batch_size=8, learning_rate=0.05, held_out=0.0, save_every=4, optimiser="sgd", nesterov=True
)


class Drawn(Hook):
    """Adds noise to gradients and shrinks weights, from a state of its own."""

    def __init__(self) -> None:
        self.seen = torch.zeros(1)

    def after_gradients(self, masters: Mapping[str, Tensor], step: int) -> None:
        draw = torch.Generator().manual_seed(step)
        for master in masters.values():
            assert master.grad is not None
            master.grad += 0.01 * self.seen * torch.randn(master.shape, generator=draw)

    def after_step(self, masters: Mapping[str, Tensor], step: int) -> None:
        self.seen += 0.5
        for master in masters.values():
            master.mul_(0.999)

    def state(self) -> Mapping[str, Tensor]:
        return {"seen": self.seen}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.seen = state["seen"]


def trained(plan: Plan, memory: Memory, graph: Graph, *, frozen: bool = False) -> GraphTrained:
    found = GraphTrained(graph, frozen=frozen)
    loss = objective_loss(found.module, None, read, LABELS)
    Trainer(found, loss, Pictures(), plan, memory, Silent(), [Drawn()], "test").run()
    return found


def arrays(graph: Graph) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in graph.initializers.items()}


def test_weights_are_trained_and_constants_are_not() -> None:
    graph = small_resnet()
    names = weights_of(graph)
    assert names == {
        "stem", "one", "two", "head", "head.bias",
        *(f"{one}.{part}" for one in ("n0", "n1", "n2") for part in ("scale", "bias")),
    }  # fmt: skip
    with pytest.raises(RecoveryImpossible, match="no weights"):
        GraphTrained(graph, only=["half"])


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_of_the_battery_has_gradients(name: str) -> None:
    found = GraphTrained(read_graph(stored(name)))
    torch.stack([one.square().sum() for one in found.module(samples(name, 4)).values()]).sum().backward()
    assert found.masters
    assert [name for name, one in found.masters.items() if not one.is_leaf or one.grad is None] == []


def test_statistics_move_as_onnx_says() -> None:
    graph = small_resnet(momentum=0.7)
    found = GraphTrained(graph)
    pixels = Pictures().pixels[:8]
    found.module.run({"x": pixels})
    w = {name: torch.tensor(one, dtype=torch.float64) for name, one in graph.initializers.items()}
    made = F.conv2d((pixels.double() - w["shift"]) * w["half"], w["stem"], padding=1)
    after = {name: torch.tensor(one) for name, one in found.graph().initializers.items()}
    mean, variance = made.mean((0, 2, 3)), made.var((0, 2, 3), correction=1)
    torch.testing.assert_close(after["n0.mean"].double(), 0.3 * mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after["n0.var"].double(), 0.7 + 0.3 * variance, rtol=1e-4, atol=1e-6)
    assert set(found.buffers) == {f"{one}.{part}" for one in ("n0", "n1", "n2") for part in ("mean", "var")}


def test_frozen_statistics_stay() -> None:
    graph = small_resnet()
    after = trained(PLAN, Memory(), graph, frozen=True).graph()
    for name in graph.initializers:
        same = after.initializers[name].tobytes() == graph.initializers[name].tobytes()
        assert same == (name not in weights_of(graph)), name


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_killed_run_ends_with_the_same_bits(optimiser: str) -> None:
    plan = Plan(**{**vars(PLAN), "optimiser": optimiser, "held_out": 0.2, "evaluate_every": 3})
    whole = trained(plan, Memory(), small_resnet()).graph()
    memory = Memory(stop_after="test-000004")
    with pytest.raises(Memory.Killed):
        trained(plan, memory, small_resnet())
    resumed = trained(plan, memory, small_resnet()).graph()
    assert arrays(resumed) == arrays(whole)
    again = trained(plan, memory, small_resnet()).graph()  # from the last step, which is kept
    assert arrays(again) == arrays(whole)
    assert arrays(whole)["n1.var"] != arrays(small_resnet())["n1.var"]


def test_training_lowers_the_loss() -> None:
    graph, data = small_resnet(), Pictures()
    plan = Plan(**{**vars(PLAN), "steps": 40})
    after = trained(plan, Memory(), graph).graph()

    def loss(one: Graph) -> float:
        return float(objective_loss(watching(one), None, read, LABELS)(data.batch(range(len(data)))))

    assert loss(after) < 0.5 * loss(graph)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_types_keep_theirs(dtype: str) -> None:
    graph = small_resnet(dtype=dtype)
    found = GraphTrained(graph)
    pixels = Pictures().pixels[:8].to(getattr(torch, dtype))
    loss = found.module.run({"x": pixels})["y"].float().square().mean()
    loss.backward()
    found.gather()
    wanted = torch.float64 if dtype == "float64" else torch.float32
    for master in found.masters.values():
        assert master.dtype == wanted
        assert master.grad is not None
        with torch.no_grad():
            master += 1e-5
    found.publish()
    after = found.graph()
    assert {name: one.dtype for name, one in after.initializers.items()} == {
        name: one.dtype for name, one in graph.initializers.items()
    }
    assert dict(found.weights())["stem"].dtype == getattr(torch, dtype)
    before = torch.tensor(graph.initializers["stem"], dtype=torch.float64)
    torch.testing.assert_close(found.masters["stem"].detach().double(), before + 1e-5, rtol=0, atol=1e-7)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.9, True), (0.9, False), (0.0, False)])
def test_descent_is_that_of_torch(momentum: float, nesterov: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    ours = torch.randn(7, 3, generator=draw)
    theirs = ours.clone().requires_grad_()
    optimiser = torch.optim.SGD(
        [theirs], lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=0.01, foreach=False
    )
    velocity = torch.zeros_like(ours)
    for _ in range(5):
        gradient = torch.randn(7, 3, generator=draw)
        ours.grad, theirs.grad = gradient, gradient.clone()
        sgd(ours, velocity, 0.1, momentum, 0.01, nesterov=nesterov)
        optimiser.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)


def test_parts_of_a_loss_add_up() -> None:
    dense, data = watching(small_resnet()), Pictures()
    changed = GraphTrained(small_resnet())
    with torch.no_grad():
        changed.masters["one"].mul_(1.5)
    changed.train(False)
    what = Objective(2.0, 3.0, 2.0, (Inner("k", 0.5),))
    batch = data.batch(range(6))
    found = float(objective_loss(changed.module, dense, read, what)(batch).detach())
    with torch.no_grad():
        mine = changed.module.double().run({"x": batch["pixel_values"].double()}, ["y", "k"])
        theirs = dense.double().run({"x": batch["pixel_values"].double()}, ["y", "k"])
    rows = torch.arange(6)
    entropy = -mine["y"].log_softmax(1)[rows, batch["labels"]].mean()
    p, q = (one["y"].div(2).softmax(1) for one in (theirs, mine))
    kl = (p * (p / q).log()).sum() / 6 * 4
    inner = (mine["k"] - theirs["k"]).square().sum() / theirs["k"].square().sum()
    assert found == pytest.approx(float(2 * entropy + 3 * kl + 0.5 * inner), rel=1e-4)


def test_inner_values_of_a_cut_graph_are_compared_with_what_was_kept() -> None:
    wide, narrow = watching(small_resnet(inner=6)), small_resnet(inner=6)
    places = np.array([0, 2, 3])
    cutting = {"one": 0, "n1.scale": 0, "n1.bias": 0, "n1.mean": 0, "n1.var": 0, "two": 1}
    kept = {
        name: np.take(one, places, cutting[name]) if name in cutting else one
        for name, one in narrow.initializers.items()
    }
    smaller = watching(Graph(**{**vars(narrow), "initializers": kept}))
    batch = Pictures().batch(range(4))
    exact = Objective(dense=0.0, inner=(Inner("k", 1.0, {1: places}),))
    assert float(objective_loss(smaller, wide, read, exact)(batch)) < 1e-10
    with pytest.raises(RecoveryImpossible, match="which places"):
        objective_loss(smaller, wide, read, Objective(dense=0.0, inner=(Inner("k"),)))(batch)


def test_what_is_missing_is_said() -> None:
    module = watching(small_resnet())
    with pytest.raises(RecoveryImpossible, match="dense graph"):
        objective_loss(module, None, read, Objective())
    with pytest.raises(BatchInvalid, match="give labels"):
        objective_loss(module, None, read, LABELS)(Pictures(labelled=False).batch([0]))
    with pytest.raises(ValueError, match="at least one part"):
        Objective(dense=0.0)
