"""Schedules: what each paper says happens, the target, determinism, and going on after a kill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compression.errors import RecoveryDiverged
from compression.graphs.costs import CostModel, costs
from compression.graphs.cutting import cut
from compression.graphs.gates import gated
from compression.graphs.graph import Graph
from compression.graphs.losses import Objective
from compression.graphs.masking import disagreement, mask
from compression.graphs.schedules.gates import GatesTrained, bottleneck_loss
from compression.graphs.schedules.group_lasso import strengths
from compression.graphs.schedules.growing_reg import Rising
from compression.graphs.schedules.iterative import with_first
from compression.graphs.schedules.mask_sparsity import batch_norm_scales
from compression.graphs.schedules.oto import HalfSpace
from compression.graphs.schedules.soft_masks import SoftMasks
from compression.graphs.slices import Slices
from compression.graphs.soft_costs import SoftCosts
from compression.graphs.training import GraphTrained
from tests.engine.graphs.schedule_work import RATIO, TRAINING, ran, tensor, work
from tests.engine.graphs.trainable import Memory, Pictures


def arrays(graph: Graph) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in graph.initializers.items()}


def stem_norms(graph: Graph) -> torch.Tensor:
    """By inner channel, the norm of all that makes, scales and reads it, written by hand."""
    rows = tensor(graph, "one").square().sum((1, 2, 3)) + tensor(graph, "two").square().sum((0, 2, 3))
    return (rows + tensor(graph, "n1.scale").square() + tensor(graph, "n1.bias").square()).sqrt()


@pytest.mark.parametrize("name", ["one-shot", *TRAINING])
def test_the_target_is_met_and_masked_is_cut(name: str) -> None:
    given = work()
    outcome = ran(name, given)
    anatomy = given.with_weights(outcome.graph)
    smaller = cut(anatomy, outcome.units)
    dense = costs(given.anatomy.graph).macs
    assert 0 < costs(smaller).macs <= RATIO * dense
    assert disagreement(mask(anatomy, outcome.units), smaller, {"x": Pictures().pixels[:4]}) < 1e-5
    assert {one.dtype for one in outcome.graph.initializers.values()} == {
        one.dtype for one in given.anatomy.graph.initializers.values()
    }


@pytest.mark.parametrize("name", TRAINING)
def test_a_killed_schedule_ends_with_the_same_bits(name: str) -> None:
    whole = ran(name, work(steps=60, rounds=1))
    memory = Memory(
        stop_after=f"training-{name}-01-000050" if name == "iterative" else f"training-{name}-000050"
    )
    with pytest.raises(Memory.Killed):
        ran(name, work(memory, steps=60, rounds=1))
    resumed = ran(name, work(memory, steps=60, rounds=1))
    assert arrays(resumed.graph) == arrays(whole.graph)
    assert resumed.units == whole.units
    assert resumed.told == whole.told


@pytest.mark.parametrize("name", ["growing-reg", "gates"])
def test_without_labels_it_follows_the_dense_graph(name: str) -> None:
    given = replace(work(steps=5), data=Pictures(labelled=False), objective=Objective())
    assert ran(name, given).units


def test_what_diverges_says_so() -> None:
    with pytest.raises(RecoveryDiverged, match=r"options\.learning_rate"):
        ran("growing-reg", work(learning_rate=1e30))


def test_slices_are_those_of_the_groups() -> None:
    given = work()
    found = GraphTrained(given.anatomy.graph)
    slices = Slices(given.anatomy, found.masters)
    by_group = slices.by_group(slices.sums(found.masters).sqrt())
    torch.testing.assert_close(torch.from_numpy(by_group["one:0"]), stem_norms(given.anatomy.graph))
    makers = Slices(given.anatomy, found.masters, {"producer", "follower"})
    units = makers.numbers({"one:0": [2]})
    with torch.no_grad():
        makers.zero(found.masters, units)
    graph = found.graph()
    for name in ("one", "n1.scale", "n1.bias"):
        assert not graph.initializers[name][2].any()
        assert graph.initializers[name][[0, 1, 3, 4, 5]].any()
    assert graph.initializers["two"][:, 2].any()
    assert makers.chosen(units) == {"one:0": [2]}


def test_a_pull_is_the_gradient_of_half_the_squares() -> None:
    given = work()
    found = GraphTrained(given.anatomy.graph)
    slices = Slices(given.anatomy, found.masters)
    strength = torch.linspace(0, 1, slices.units, dtype=torch.float64)
    slices.pull(found.masters, strength)
    at = slices.first["one:0"]
    own = strength[at : at + 6]
    stem = strength[slices.first["stem:0"] : slices.first["stem:0"] + 8]
    one = found.masters["one"]
    wanted = one.detach().double() * (own[:, None, None, None] + stem[None, :, None, None])
    assert one.grad is not None
    torch.testing.assert_close(one.grad.double(), wanted, rtol=1e-5, atol=1e-7)


def test_growing_regularisation_empties_what_goes() -> None:
    given = work(steps=120)
    outcome = ran("growing-reg", given)
    before, after = stem_norms(given.anatomy.graph), stem_norms(outcome.graph)
    gone = outcome.units["one:0"]
    left = [unit for unit in range(6) if unit not in gone]
    assert bool((after[gone] < 0.1 * before[gone]).all())
    assert bool((after[left] > 0.5 * before[left]).all())
    slices = Slices(given.anatomy, GraphTrained(given.anatomy.graph).masters)
    rising = Rising(slices, slices.numbers(outcome.units), 120, 2.0)
    rates = [rising.penalty(step) for step in range(120)]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(2.0 / 18)
    assert rates[4] < rates[5]
    assert rates[89:] == [2.0] * 31


def test_mask_sparsity_presses_the_scales_of_what_goes_alone() -> None:
    given = work(steps=120, penalty=0.3)
    outcome = ran("mask-sparsity", given)
    free = ran("mask-sparsity", work(steps=120, penalty=0.0))
    assert outcome.units == free.units
    gone = outcome.units["one:0"]
    left = [unit for unit in range(6) if unit not in gone]
    scales, plain = (tensor(one.graph, "n1.scale").abs() for one in (outcome, free))
    assert bool((scales[gone] < 0.25 * plain[gone]).all())
    assert bool((scales[left] > 0.7 * plain[left]).all())
    assert batch_norm_scales(given.anatomy) == {"n0.scale", "n1.scale", "n2.scale"}


def test_group_sparsity_is_strongest_for_the_weakest() -> None:
    given = work(steps=60, penalty=0.05)
    slices = Slices(given.anatomy, GraphTrained(given.anatomy.graph).masters)
    importance = torch.arange(float(slices.units)).double()
    found = strengths(slices, importance)
    at = slices.first["one:0"]
    wanted = torch.tensor([2.0 ** (4 * (5 - place) / 5) for place in range(6)], dtype=torch.float64)
    torch.testing.assert_close(found[at : at + 6], wanted)
    assert bool((strengths(slices, torch.ones(slices.units, dtype=torch.float64)) == 1).all())
    before, after = stem_norms(given.anatomy.graph), stem_norms(ran("group-lasso", given).graph)
    assert float(after.max() / after.min()) > 2 * float(before.max() / before.min())


def test_only_train_once_makes_groups_exactly_zero() -> None:
    outcome = ran("oto", work(steps=150))
    gone = outcome.units["one:0"]
    for name in ("one", "n1.scale", "n1.bias"):
        assert not outcome.graph.initializers[name][gone].any()
    left = [unit for unit in range(6) if unit not in gone]
    assert all(outcome.graph.initializers["one"][unit].any() for unit in left)
    counted = sum(map(len, outcome.units.values()))
    assert outcome.told[0].startswith(f"{counted} of the {counted} groups that go were exactly zero")


def test_a_half_space_is_left_when_a_group_turns_round() -> None:
    given = work()
    found = GraphTrained(given.anatomy.graph)
    slices = Slices(given.anatomy, found.masters, {"producer", "follower"})
    hook = HalfSpace(slices, slices.numbers({"one:0": [0, 1, 2]}), found.masters, 0.0, 1)
    with torch.no_grad():
        for step in (0, 1):
            hook.after_gradients(found.masters, step)
            for name in ("one", "n1.scale", "n1.bias"):
                found.masters[name][0] *= -0.1  # turns round: out of the half-space
                found.masters[name][1] *= 0.1  # shrinks: stays in it
                found.masters[name][3] *= -0.1  # is not one of those that go
            hook.after_step(found.masters, step)
            zero = [not found.masters["one"][unit].any() for unit in range(6)]
            assert zero == [step == 1, False, False, False, False, False]


def test_rounds_remove_more_and_more_and_what_went_stays_away() -> None:
    given = work(steps=30, rounds=3)
    seen: list[dict[str, list[int]]] = []
    asked: list[float] = []

    def choose(scores, share=1.0, scales=None):  # type: ignore[no-untyped-def]
        seen.append(given.choose(scores, share, scales))
        asked.append(share)
        return seen[-1]

    outcome = ran("iterative", replace(given, choose=choose))
    assert asked == [pytest.approx(number / 3) for number in (1, 2, 3)]
    for name in {name for one in seen for name in one}:
        assert outcome.units[name] == sorted({unit for one in seen for unit in one.get(name, [])})
    assert not outcome.graph.initializers["two"][:, outcome.units["one:0"]].any()
    assert outcome.graph.initializers["two"].any()


def test_units_that_went_come_first_whatever_the_scores() -> None:
    scores = {"a": np.array([-3.0, 5.0, 4.0]), "b": np.array([0.1, 0.2])}
    found, scales = with_first(scores, {"a": [1]})
    assert found["a"].argmin() == 1
    assert found["b"].tolist() == [0.1, 0.2]
    assert scales == {"a": pytest.approx(0.5), "b": pytest.approx(0.15)}


def test_soft_costs_are_the_costs_of_what_is_left() -> None:
    anatomy = work().anatomy
    model = CostModel(anatomy)
    slices = Slices(anatomy, anatomy.graph.initializers)
    for removed in ({}, {"one:0": [1, 4]}, {"one:0": [0], "stem:0": [2, 3, 5]}):
        gates = (~slices.numbers(removed)).double()
        wanted, dense = model.without(removed), model.without({})
        assert float(SoftCosts(anatomy, "macs").ratio(gates)) == pytest.approx(wanted.macs / dense.macs)
        assert float(SoftCosts(anatomy, "parameters").ratio(gates)) == pytest.approx(
            wanted.parameters / dense.parameters
        )


def test_gates_respect_the_constraint_and_weights_stay() -> None:
    given = work(steps=150)
    outcome = ran("gates", given)
    assert arrays(outcome.graph) == arrays(given.anatomy.graph)
    left = float(outcome.told[0].split()[2])
    assert left == pytest.approx(RATIO, abs=0.05)


def test_open_gates_change_nothing_and_closed_ones_are_a_mask() -> None:
    given = work()
    trained = GatesTrained(gated(given.anatomy))
    logits = trained.masters["gates"]
    pixels = {"x": Pictures().pixels[:4]}
    with torch.no_grad():
        logits.fill_(50.0)
        logits[Slices(given.anatomy, ()).numbers({"one:0": [1, 3]})] = -200.0
        found = trained.module.run(pixels)["y"]
        wanted = mask(given.anatomy, {"one:0": [1, 3]}).module().eval().run(pixels)["y"]
    torch.testing.assert_close(found, wanted)


def test_the_constraint_is_zero_at_the_target_and_one_at_both_ends() -> None:
    given = work()
    trained = GatesTrained(gated(given.anatomy))
    costs_left = SoftCosts(given.anatomy, "macs")
    loss = bottleneck_loss(lambda _: torch.zeros(()), trained, costs_left, RATIO, 2.0)
    logits = trained.masters["gates"]
    with torch.no_grad():
        logits.fill_(60.0)
        assert float(loss({})) == pytest.approx(2.0, abs=1e-6)
        logits.fill_(-60.0)
        edges = float(costs_left.ratio(trained.open()))
        assert float(loss({})) == pytest.approx(2.0 * (1 - edges / RATIO), abs=1e-6)


def test_soft_masks_are_masks_and_let_gradients_through() -> None:
    given = work()
    found = GraphTrained(given.anatomy.graph, frozen=True)
    hook = SoftMasks(given, found)
    slices = Slices(given.anatomy, found.masters)
    gone = {"one:0": [1, 4], "stem:0": [2]}
    hook.restore({**hook.state(), "masked": slices.numbers(gone)})
    pixels = {"x": Pictures().pixels[:4]}
    answer = found.module.run(pixels)["y"]
    torch.testing.assert_close(answer, mask(given.anatomy, gone).module().eval().run(pixels)["y"])
    answer.square().sum().backward()
    assert found.masters["two"].grad is not None
    assert bool((found.masters["two"].grad[:, [1, 4]] != 0).any())
    assert hook.units() == {"stem:0": [2], "one:0": [1, 4]}


def test_masked_channels_return_when_they_matter() -> None:
    given = work(steps=40, rounds=1)
    found = GraphTrained(given.anatomy.graph)
    hook = SoftMasks(given, found)
    slices = Slices(given.anatomy, found.masters)
    importance = torch.arange(1.0, slices.units + 1, dtype=torch.float64)
    importance[slices.numbers({"one:0": [1]})] = 100.0
    masked = slices.numbers({"one:0": [1, 4]})
    hook.restore({"importance": importance, "masked": masked, "changes": torch.tensor(0)})
    hook.after_step(found.masters, 19)
    assert 1 not in hook.units().get("one:0", [])
    assert hook.changes >= 1
    assert not hook.state()["importance"].any()


def test_readers_of_what_is_masked_go_on_learning() -> None:
    outcome = ran("soft-masks", work(steps=80, rounds=5))
    masked = outcome.units["one:0"]
    before, after = tensor(work().anatomy.graph, "two"), tensor(outcome.graph, "two")
    assert bool((after[:, masked] != before[:, masked]).any())
