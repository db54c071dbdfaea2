"""OBS for units against brute force, every subset solved anew in float64; CFSP's scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.criteria.structures import structure_criteria
from compression.criteria.structures.cfsp import Cfsp
from compression.criteria.structures.obs import Obs
from compression.criteria.units import Piece, Units
from compression.unit_statistics import UnitStatistics
from compression.updates.quadratic import HessianSingular
from compression.updates.structures import structure_updates
from compression.updates.units import StructureCut, StructureTask

DAMPING = 0.01


def _units(count: int, size: int, dead: bool = False) -> Units:
    generator = torch.Generator().manual_seed(count * 10 + size)
    inputs = count * size
    mix = torch.randn(inputs, inputs, generator=generator)
    rows = torch.randn(300, inputs, generator=generator) @ mix
    if dead:
        rows[:, :size] = 0
    columns = torch.randn(count, size, 7, generator=generator)
    return Units("neuron.0", count, [Piece(columns, column=True)], hessian=rows.T @ rows)


def _weight(units: Units) -> Tensor:
    return units.output.reshape(-1, units.output.shape[2]).T.double()


def _error(units: Units, kept: list[int], damping: float = DAMPING) -> float:
    """min over W' that reads only the kept units of tr((W - W') (H + d I) (W - W')^T)."""
    assert units.hessian is not None
    hessian = units.hessian.double()
    hessian = hessian + damping * float(hessian.diagonal().mean()) * torch.eye(
        len(hessian), dtype=torch.float64
    )
    weight, size = _weight(units), units.output.shape[1]
    inputs = [unit * size + offset for unit in kept for offset in range(size)]
    found = torch.zeros_like(weight)
    if inputs:
        found[:, inputs] = torch.linalg.solve(hessian[inputs][:, inputs], (weight @ hessian[:, inputs]).T).T
    apart = weight - found
    return float((apart @ hessian @ apart.T).trace())


def _score(units: Units, **parameters: float) -> Tensor:
    return Obs(**{"damping": DAMPING, **parameters}).score(units, torch.Generator())  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "size"), [(9, 1), (6, 3), (1, 4)])
def test_each_removal_is_the_cheapest_and_costs_what_brute_force_says(count: int, size: int) -> None:
    units = _units(count, size)
    scores = _score(units)
    left = list(range(count))
    for unit in scores.argsort().tolist():
        errors = {one: _error(units, [other for other in left if other != one]) for one in left}
        assert unit == min(errors, key=lambda one: errors[one])
        assert float(scores[unit]) == pytest.approx(errors[unit], rel=1e-7)
        left.remove(unit)
    assert not left


@pytest.mark.parametrize("size", [1, 3])
def test_least_squares_reach_the_error_that_the_scores_say(size: int) -> None:
    units = _units(6, size)
    scores = _score(units)
    kept = scores.argsort()[2:].sort().values
    inputs = (kept[:, None] * size + torch.arange(size)).flatten()
    dense = _weight(units).float()
    update = type(structure_updates["least-squares"])(damping=DAMPING)  # type: ignore[call-arg]
    task = StructureTask(dense, inputs, "site", False, None, units.hessian)
    after = update.apply(task, StructureCut(dense[:, inputs])).weight.double()
    apart = dense.double().index_add(1, inputs, after, alpha=-1)
    assert units.hessian is not None
    hessian = units.hessian.double()
    damping = DAMPING * float(hessian.diagonal().mean())
    # The update's own damping holds kept weights alone, so the layer's error is no larger than the score.
    error = float((apart @ hessian @ apart.T).trace())
    assert error <= float(scores.sort().values[1]) * (1 + 1e-4)
    assert error + damping * float(apart.square().sum()) >= float(scores.sort().values[1]) * (1 - 1e-4)


def test_several_may_go_at_a_time() -> None:
    units = _units(9, 1)
    one, three = _score(units), _score(units, obs_units=3)
    assert len(set(three.tolist())) == 9
    # Whatever the order, being without all of them costs the same.
    assert float(three.max()) == pytest.approx(float(one.max()), rel=1e-7)


def test_cfsp_against_numpy() -> None:
    generator = torch.Generator().manual_seed(5)
    up, down = (torch.randn(6, 1, 4, generator=generator) for _ in range(2))
    statistics = UnitStatistics(
        50,
        torch.randn(6, generator=generator, dtype=torch.float64),
        torch.rand(6, generator=generator, dtype=torch.float64),
        torch.zeros(6, dtype=torch.float64),
        torch.zeros(6, dtype=torch.float64),
    )
    pieces = [Piece(up), Piece(torch.ones(6, 1, 1), bias=True), Piece(down, column=True)]
    norms = np.sqrt((statistics.variances.numpy() + statistics.means.numpy() ** 2) * 50)
    for power in (1.0, 0.5):
        wanted = np.zeros(6)
        for weight in (up, down):
            sizes = np.abs(weight[:, 0].double().numpy())
            wanted += (sizes / sizes.sum(axis=0)).mean(axis=1)
        wanted *= norms**power
        units = Units("neuron.0", 6, pieces, statistics)
        found = Cfsp(cfsp_power=power).score(units, torch.Generator())
        assert np.allclose(found.numpy(), wanted, rtol=1e-12)


def test_units_that_give_nothing_go_first() -> None:
    scores = _score(_units(6, 2, dead=True), damping=1e-6)
    assert int(scores.argmin()) == 0


def test_products_without_an_inverse_are_named() -> None:
    units = _units(4, 1)
    bad = Units(units.name, 4, units.pieces, hessian=torch.full((4, 4), float("nan")))
    with pytest.raises(HessianSingular, match=r"neuron\.0"):
        _score(bad)
    with pytest.raises(ValueError, match="products of the inputs"):
        structure_criteria["obs"].score(Units(units.name, 4, units.pieces), torch.Generator())
