"""2SSP's two stages, MultiPruner's three, Bonsai's sub-models and NIRVANA's balance, by their own rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compression.allocation.regression import PENALTIES, unit_worth
from compression.allocation.structures import structure_allocations
from compression.allocation.structures.two_stage import attentions_to_remove
from compression.allocation.units import UnitSelection, total
from tests.engine.test_unit_allocations import COSTS, HEADS, LAYERS, NEURONS, WHOLE, Known


def _of(kind: str, keep: dict[str, int]) -> list[int]:
    return [keep[f"{kind}.{layer}"] for layer in range(LAYERS)]


def _with(name: str, **parameters: float) -> object:
    return type(structure_allocations[name])(**parameters)


# -- two stages
# -------------------------------------------------------------------------------------------------


def test_how_many_attentions_go() -> None:
    """Llama 2 7B: 32 layers, feed-forwards of 3 x 11008 x 4096, attentions of 4 x 4096^2."""
    ratio = 3 * 11008 / (4 * 4096)
    assert [attentions_to_remove(32, share, ratio, 1.5) for share in (0.0, 0.25, 0.5, 1.0)] == [0, 5, 13, 32]
    # Never more than the target, where the ratio is at least alpha.
    for layers in (4, 32, 80):
        for ratio in (1.5, 2.0, 4.2):
            for share in np.linspace(0, 1, 21):
                exact = layers * share ** (ratio / 1.5)
                assert exact <= share * layers * (1 + ratio) + 1e-9
                assert abs(attentions_to_remove(layers, share, ratio, 1.5) - exact) <= 0.5


@pytest.mark.parametrize("share", [0.35, 0.5, 0.7, 0.9])
def test_two_stages_take_neurons_evenly_and_attentions_whole(share: float) -> None:
    evidence = Known(1, parts=True)
    budget = int(share * WHOLE)
    keep = structure_allocations["two-stage"].allocate(evidence, budget)
    assert max(_of("neuron", keep)) - min(_of("neuron", keep)) <= 1
    heads = _of("head", keep)
    assert heads[0] == HEADS
    assert set(heads) <= {0, HEADS}
    # Feed-forwards cost a quarter of attentions here, so the rule would take too many.
    gone = (WHOLE - budget) // (HEADS * COSTS["head"])
    least = math.ceil((WHOLE - budget - LAYERS * NEURONS * 10) / (HEADS * COSTS["head"]))
    assert heads.count(0) == max(min(gone, LAYERS - 1), least)
    assert 0 <= budget - total(evidence, keep) < COSTS["neuron"]


def test_two_stages_take_what_the_loss_misses_least() -> None:
    """Later layers' heads are worth more in these losses: the second layer's attention goes before others."""
    keep = structure_allocations["two-stage"].allocate(Known(1, parts=True), int(0.75 * WHOLE))
    assert _of("head", keep) == [HEADS, 0, HEADS, HEADS]


def test_a_larger_alpha_takes_more_attentions() -> None:
    found = []
    for alpha in (0.1, 1.5):
        keep = _with("two-stage", two_stage_alpha=alpha).allocate(Known(1, parts=True), int(0.55 * WHOLE))  # type: ignore[attr-defined]
        found.append(_of("head", keep).count(0))
    assert found[0] <= found[1]


# -- three stages
# -------------------------------------------------------------------------------------------------


def test_three_stages_in_their_order() -> None:
    evidence = Known(1, parts=True)
    structure_allocations["three-stage"].allocate(evidence, int(0.5 * WHOLE))
    parts = [keep for keep, sequences in evidence.asked if sequences == 16]
    widths = [keep for keep, sequences in evidence.asked if sequences == 8]
    assert evidence.asked.index((widths[0], 8)) == len(parts)
    assert all(set(keep.values()) == {0} for keep in parts)
    # Neurons of one layer after another, then heads; parts that went stay away.
    kinds = [
        "head" if any(0 < n < HEADS and "head" in g for g, n in keep.items()) else "neuron" for keep in widths
    ]
    assert kinds == sorted(kinds, reverse=True)
    assert {"head", "neuron"} == set(kinds)


def test_shares_say_what_goes() -> None:
    """All of it as neurons, as heads, or as parts, as far as that goes."""
    budget = int(0.9 * WHOLE)
    rows = {"three_stage_parts": 0, "three_stage_neurons": 0, "three_stage_heads": 0}
    found = {
        name: _with("three-stage", **{**rows, name: 1}).allocate(Known(1, parts=True), budget)  # type: ignore[attr-defined]
        for name in rows
    }
    assert _of("head", found["three_stage_neurons"]) == [HEADS] * LAYERS
    assert sum(_of("neuron", found["three_stage_heads"])) >= LAYERS * NEURONS - 16
    assert 0 in found["three_stage_parts"].values()
    assert 0 not in {**found["three_stage_neurons"], **found["three_stage_heads"]}.values()


def test_neurons_go_in_groups() -> None:
    evidence = Known(1)
    chosen = _with("three-stage", three_stage_channels=0.25, three_stage_heads=0)
    chosen.allocate(evidence, int(0.95 * WHOLE))  # type: ignore[attr-defined]
    asked = {n for keep, _ in evidence.asked for name, n in keep.items() if name.startswith("neuron")}
    assert asked <= {NEURONS - 6, NEURONS - 12, NEURONS - 18}


# -- sub-models
# -------------------------------------------------------------------------------------------------


def _dense_ridge(absent: np.ndarray, rises: np.ndarray, penalty: float) -> np.ndarray:
    """Weights and intercept by the normal equations in as many unknowns as units; the intercept is free."""
    models, units = absent.shape
    design = np.hstack([absent, np.ones((models, 1))])
    damping = np.diag([penalty] * units + [0.0])
    return np.linalg.solve(design.T @ design + damping, design.T @ rises)[:units]


def test_worth_against_dense_ridge_and_brute_force() -> None:
    """With a prior of nothing, the penalty is that with the least error of models left out one by one."""
    dice = np.random.default_rng(3)
    absent = (dice.random((30, 12)) < 0.5).astype(float)
    rises = absent @ dice.random(12) + 0.3 * dice.standard_normal(30)
    centred = absent - absent.mean(0)
    scale = float(np.linalg.eigvalsh(centred @ centred.T).clip(0).mean())
    errors = {}
    for factor in PENALTIES:
        left = []
        for out in range(30):
            rest = [row for row in range(30) if row != out]
            design = np.hstack([absent[rest], np.ones((29, 1))])
            damping = np.diag([factor * scale] * 12 + [0.0])
            both = np.linalg.solve(design.T @ design + damping, design.T @ rises[rest])
            left.append(rises[out] - absent[out] @ both[:12] - both[12])
        errors[factor] = float(np.square(left).sum())
    best = min(errors, key=errors.__getitem__)
    wanted = _dense_ridge(absent, rises, best * scale)
    found = unit_worth(
        torch.from_numpy(absent),
        torch.from_numpy(rises),
        torch.zeros(12, dtype=torch.float64),
        [torch.arange(12)],
    )
    assert np.allclose(found.numpy(), wanted, atol=1e-9)


def test_worth_follows_the_prior_where_it_explains_all() -> None:
    dice = torch.Generator().manual_seed(1)
    prior = torch.rand(40, generator=dice, dtype=torch.float64)
    pools = [torch.arange(25), torch.arange(25, 40)]
    worth = torch.cat([2 * prior[:25], 0.5 * prior[25:]])
    absent = (torch.rand(20, 40, generator=dice) < 0.5).to(torch.float64)
    assert torch.allclose(unit_worth(absent, absent @ worth, prior, pools), worth, atol=1e-9)
    # What does not vary says nothing.
    same = torch.ones(6, 40, dtype=torch.float64)
    assert torch.isfinite(unit_worth(same, torch.ones(6, dtype=torch.float64), prior, pools)).all()


class Blind(Known):
    """The criterion knows nothing; the loss knows which units are worth nothing."""

    def scores(self, group):  # type: ignore[no-untyped-def]
        return torch.ones(group.count, dtype=torch.float64)

    def loss(self, kept, sequences):  # type: ignore[no-untyped-def]
        lost = 0.0
        for group in self.groups:
            stays = set(kept.get(group.name, torch.arange(group.count)).tolist())
            lost += sum(self.worth(group, unit) for unit in range(group.count) if unit not in stays)
        return lost

    def worth(self, group, unit):  # type: ignore[no-untyped-def]
        return 0.0 if unit % 3 == 1 else 1.0 * COSTS[group.kind] / 10


def test_submodels_find_the_idle_units_that_scores_do_not_know() -> None:
    evidence = Blind(1)
    chosen = _with("perturbation", submodel_fraction=0.4, submodel_count=300)
    assert isinstance(chosen, UnitSelection)
    units = chosen.select(evidence, int(0.75 * WHOLE))
    gone = [
        (group, unit)
        for group in evidence.groups
        for unit in sorted(set(range(group.count)) - set(units[group.name].tolist()))
    ]
    idle = [pair for pair in gone if evidence.worth(*pair) == 0]
    assert len(gone) >= 12
    assert len(idle) >= 0.8 * len(gone)
    assert {name: len(one) for name, one in units.items()} == chosen.allocate(evidence, int(0.75 * WHOLE))


def test_submodels_keep_the_least_and_take_no_more_than_a_round() -> None:
    evidence = Known(1)
    _with("perturbation", submodel_count=6).allocate(evidence, int(0.9 * WHOLE))  # type: ignore[attr-defined]
    lacking = [
        WHOLE - sum(n * COSTS[name.split(".")[0]] for name, n in keep.items()) for keep, _ in evidence.asked
    ]
    # Of two rounds of a twentieth each, the first lacks at most twice that, and what rounding adds.
    assert 0 < max(lacking[:7]) <= 0.1 * WHOLE + 2 * COSTS["head"]
    assert all(min(keep.values()) >= 1 for keep, _ in evidence.asked)


def test_every_second_submodel_is_the_complement() -> None:
    seen: list[set[tuple[str, int]]] = []

    class Watched(Known):
        def loss(self, kept, sequences):  # type: ignore[no-untyped-def]
            seen.append(
                {(g.name, u) for g in self.groups for u in set(range(g.count)) - set(kept[g.name].tolist())}
            )
            return super().loss(kept, sequences)

    _with("perturbation", submodel_count=8, submodel_fraction=0.1).allocate(Watched(1), int(0.9 * WHOLE))  # type: ignore[attr-defined]
    assert seen[0] == set()
    pairs = [(seen[n], seen[n + 1]) for n in range(1, 9, 2)]
    assert all(not (one & other) for one, other in pairs)
    assert len({frozenset(one | other) for one, other in pairs}) == 1


# -- balance
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.36])
def test_neurons_lose_gamma_times_what_heads_lose(gamma: float) -> None:
    evidence, budget = Known(1), int(0.8 * WHOLE)
    keep = _with("balanced", balanced_gamma=gamma).allocate(evidence, budget)  # type: ignore[attr-defined]
    heads, neurons = (
        1 - sum(_of(kind, keep)) / (LAYERS * n) for kind, n in (("head", HEADS), ("neuron", NEURONS))
    )
    attention, ffn = HEADS * COSTS["head"], NEURONS * COSTS["neuron"]
    wanted = 0.2 * (attention + ffn) / (attention + gamma * ffn)
    assert heads == pytest.approx(wanted, abs=0.5 / (LAYERS * HEADS) + 1e-9)
    # The authors' way: how many units of each kind.
    ratio = attention / ffn * COSTS["neuron"] / COSTS["head"] / gamma
    assert wanted * HEADS / (gamma * wanted * NEURONS) == pytest.approx(ratio)
    assert heads * attention + neurons * ffn == pytest.approx(0.2 * (attention + ffn), abs=COSTS["neuron"])


def test_within_a_kind_the_lowest_scores_of_all_layers_go() -> None:
    evidence = Known(1)
    keep = structure_allocations["balanced"].allocate(evidence, int(0.85 * WHOLE))
    for kind in ("neuron", "head"):
        groups = [group for group in evidence.groups if group.kind == kind]
        ordered = [evidence.scores(group).sort().values.tolist() for group in groups]
        cut = [group.count - keep[group.name] for group in groups]
        gone = [value for values, n in zip(ordered, cut, strict=True) for value in values[:n]]
        stay = [v for values, n in zip(ordered, cut, strict=True) for v in values[n:-1]]
        # One step may have been given back.
        assert sorted(gone)[-1] <= sorted(stay)[1]
