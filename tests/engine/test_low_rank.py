"""Factors, spectra, refits and ranks against references in float64 that are made in other ways."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.allocation.ranks import rank_allocations
from compression.allocation.ranks.energy import curve, hull
from compression.anatomy.factors import bias_names, factor_names, weight_of
from compression.anatomy.inspection import Site
from compression.anatomy.ranks import RankBudget, saving_ranks, stored, uniform_ranks
from compression.criteria.base import SiteStatistics
from compression.criteria.ranks import rank_criteria
from compression.criteria.ranks.whitening import Whitening
from compression.low_rank import NotFactored, factors, root
from compression.sums import Sums
from compression.updates.ranks import rank_updates
from compression.updates.ranks.refit import Refit

SHAPES = [(12, 20), (20, 12), (16, 16), (5, 40)]


def _case(shape: tuple[int, int], seed: int = 0, tokens: int = 200) -> tuple[Tensor, Tensor]:
    """A weight [out, in] and correlated inputs [in, tokens], float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    mix = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    scale = torch.logspace(1, -2, shape[1], dtype=torch.float64)
    inputs = mix @ (scale[:, None] * torch.randn(shape[1], tokens, generator=generator, dtype=torch.float64))
    return weight, inputs


def _statistics(inputs: Tensor) -> SiteStatistics:
    moment = inputs @ inputs.T
    sizes = inputs.abs().mean(1)
    return SiteStatistics(moment.diagonal().sqrt(), inputs.shape[1], hessian=moment, magnitudes=sizes)


def _spectrum(name: str, weight: Tensor, inputs: Tensor, damping: float = 1e-9):
    criterion = Whitening(whitening_damping=damping) if name == "whitening" else rank_criteria[name]
    return criterion.spectrum(weight, _statistics(inputs), "w", torch.Generator().manual_seed(3))


def _root(inputs: Tensor, damping: float) -> np.ndarray:
    """A symmetric root of the damped second moment, by eigenvalues."""
    moment = (inputs @ inputs.T).to(torch.float32).double().numpy()
    moment = moment + damping * np.trace(moment) / len(moment) * np.eye(len(moment))
    values, vectors = np.linalg.eigh(moment)
    return vectors @ np.diag(np.sqrt(values)) @ vectors.T


@pytest.mark.parametrize("damping", [1e-9, 1e-2])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_whitened_error_is_the_norm_of_the_values_that_are_cut(shape, damping):
    weight, inputs = _case(shape)
    found = _spectrum("whitening", weight, inputs, damping)
    whole = _root(inputs, damping)
    assert np.allclose(
        found.values.numpy(), np.linalg.svd(weight.numpy() @ whole, compute_uv=False), rtol=1e-5, atol=1e-5
    )
    for rank in range(1, min(shape)):
        down, up = factors(weight, found, rank)
        assert (down.shape, up.shape) == ((rank, shape[1]), (shape[0], rank))
        error = np.linalg.norm((weight - up @ down).numpy() @ whole)
        assert error == pytest.approx(float(found.values[rank:].norm()), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_are_those_of_the_paper(shape):
    """U_r D^1/2 and D^1/2 V_r^T S^-1, with the inverse and the right vectors that the code does without."""
    weight, inputs = _case(shape)
    found = _spectrum("whitening", weight, inputs, 1e-4)
    factor = np.linalg.cholesky(_root(inputs, 1e-4) @ _root(inputs, 1e-4))
    left, values, right = np.linalg.svd(weight.numpy() @ factor, full_matrices=False)
    rank = 4
    up = left[:, :rank] * np.sqrt(values[:rank])
    down = np.sqrt(values[:rank])[:, None] * right[:rank] @ np.linalg.inv(factor)
    one, other = factors(weight, found, rank)
    assert np.allclose((other @ one).numpy(), up @ down, atol=1e-6)
    assert np.allclose(np.abs(other.numpy()), np.abs(up), atol=1e-5)
    assert np.allclose(np.abs(one.numpy()), np.abs(down), atol=1e-5)


@pytest.mark.parametrize("name", ["activation-scale", "magnitude", "random"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_no_other_criterion_is_better_on_the_inputs(shape, name, seed):
    weight, inputs = _case(shape, seed)
    for rank in (1, 3, min(shape) - 1):
        errors = []
        for criterion in ("whitening", name):
            down, up = factors(weight, _spectrum(criterion, weight, inputs), rank)
            errors.append(float(((weight - up @ down) @ inputs).norm()))
        assert errors[0] <= errors[1] * (1 + 1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_magnitude_is_the_nearest_weight(shape):
    weight, inputs = _case(shape)
    left, values, right = np.linalg.svd(weight.numpy(), full_matrices=False)
    down, up = factors(weight, _spectrum("magnitude", weight, inputs), 3)
    assert np.allclose((up @ down).numpy(), left[:, :3] * values[:3] @ right[:3], atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_activation_scale_is_the_nearest_scaled_weight(shape):
    weight, inputs = _case(shape)
    scale = np.sqrt(np.abs(inputs.numpy()).mean(1).astype(np.float32).astype(np.float64))
    left, values, right = np.linalg.svd(weight.numpy() * scale, full_matrices=False)
    down, up = factors(weight, _spectrum("activation-scale", weight, inputs), 3)
    assert np.allclose((up @ down).numpy(), left[:, :3] * values[:3] @ right[:3] / scale, atol=1e-6)


def test_mean_magnitudes_are_measured():
    sums = Sums.zeros(3, torch.device("cpu"), frozenset({"magnitudes"}))
    rows = torch.tensor([[1.0, -2.0, 0.0], [3.0, 4.0, 0.0]])
    sums.add(rows[:1], None)
    sums.add(rows[1:], None)
    assert sums.statistics().need("magnitudes").tolist() == [2.0, 3.0, 0.0]


def test_random_directions_depend_on_the_generator_alone():
    weight, inputs = _case((12, 20))
    first, again = (_spectrum("random", weight, inputs) for _ in range(2))
    assert torch.equal(first.left, again.left)
    assert torch.allclose(first.left.T @ first.left, torch.eye(12, dtype=torch.float64), atol=1e-12)
    down, up = factors(weight, first, 12)
    assert torch.allclose(up @ down, weight, atol=1e-9)


def test_inputs_that_say_nothing_leave_the_weight_to_decide():
    weight, inputs = _case((12, 20))
    silent = _spectrum("whitening", weight, torch.zeros_like(inputs))
    assert torch.allclose(silent.values, torch.linalg.svdvals(weight), atol=1e-9)


def test_a_moment_of_fewer_tokens_than_inputs_is_factored():
    weight, inputs = _case((12, 20), tokens=5)
    found = _spectrum("whitening", weight, inputs, 1e-6)
    down, up = factors(weight, found, 5)
    lost = float(((weight - up @ down) @ inputs).norm() / (weight @ inputs).norm())
    assert lost < 1e-2
    moment = torch.eye(4)
    moment[0, 0] = -0.5
    assert torch.isfinite(root(moment, 1e-4, "w")).all()
    with pytest.raises(NotFactored, match="inputs of w are not finite"):
        root(torch.full((2, 2), float("inf")), 1e-4, "w")


@pytest.mark.parametrize("shape", SHAPES)
def test_refit_is_the_least_squares_solution(shape):
    weight, inputs = _case(shape)
    _, others = _case(shape, seed=9)
    down, up = factors(weight, _spectrum("whitening", weight, inputs), 3)
    moment = others @ others.T
    same, new = Refit(refit_damping=1e-12).apply(weight, down, up, moment)
    assert same is down
    solved, *_ = np.linalg.lstsq((down @ others).T.numpy(), (weight @ others).T.numpy(), rcond=None)
    assert np.allclose(new.numpy(), solved.T, atol=1e-5)
    before, after = (float(((weight - one @ down) @ others).norm()) for one in (up, new))
    assert after < before


def test_refit_for_the_inputs_of_the_directions_changes_nothing():
    weight, inputs = _case((12, 20))
    down, up = factors(weight, _spectrum("whitening", weight, inputs, 1e-4), 4)
    _, new = rank_updates["refit"].apply(weight, down, up, inputs @ inputs.T)
    assert torch.allclose(new, up, atol=1e-6)


# -- ranks


def _budget(shapes: list[tuple[int, int]], total: int, multiple: int = 1) -> RankBudget:
    sites = tuple(Site(f"w{n}.weight", n, shape, "query") for n, shape in enumerate(shapes))
    return RankBudget(sites, {site.name: saving_ranks(site.shape, multiple) for site in sites}, total)


def test_ranks_that_save_anything():
    for shape in [*SHAPES, (1, 9), (2, 2), (3, 7)]:
        expected = [r for r in range(1, 99) if r * sum(shape) < shape[0] * shape[1]]
        assert list(saving_ranks(shape, 1)) == expected
    assert list(saving_ranks((64, 64), 8)) == [8, 16, 24]
    assert stored((3, 7), None) == 21
    assert stored((3, 7), 2) == 20


@pytest.mark.parametrize("multiple", [1, 3])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8, 0.999])
def test_uniform_ranks_are_the_largest_share_that_fits(share, multiple):
    shapes = [(24, 24), (12, 24), (60, 24), (24, 60), (24, 24), (1, 9)]
    whole = sum(rows * columns for rows, columns in shapes)
    budget = _budget(shapes, int(share * whole), multiple)
    found = uniform_ranks(budget)
    assert "w5.weight" not in found
    assert budget.least <= budget.stored(found) <= budget.total

    def at(part: float) -> dict[str, int]:
        ranks = {}
        for site in budget.sites[:-1]:
            fit = [r for r in budget.steps[site.name] if r * sum(site.shape) <= part * site.size]
            ranks[site.name] = max(fit, default=budget.steps[site.name][0])
        return ranks

    fitting = [at(k / 20_000) for k in range(20_001) if budget.stored(at(k / 20_000)) <= budget.total]
    assert found == fitting[-1]


def _lost(values, budget: RankBudget, ranks) -> float:
    total = 0.0
    for site in budget.sites:
        squares = np.square(values[site.name])
        if site.name in ranks:
            total += squares[ranks[site.name] :].sum() / squares.sum()
    return total


class Evidence:
    def __init__(self, values) -> None:
        self._values = values

    def values(self, site):
        return self._values[site]


@pytest.mark.parametrize("seed", range(8))
def test_energy_is_the_best_choice_of_all_where_curves_are_convex(seed):
    """Every choice of ranks is tried; shapes are alike, so that every rank costs the same. Values fall so
    that the dense end is on the curve too."""
    generator = np.random.default_rng(seed)
    shapes = [(8, 8)] * 4
    values = {}
    for n in range(4):
        drawn = np.sort(generator.exponential(size=8))[::-1] ** 2
        drawn[3:] *= 1e-4
        values[f"w{n}.weight"] = drawn.tolist()
    # Full: 4 * 64; a rank stores 16, dense is four of them.
    for total in range(64, 4 * 64, 16):
        budget = _budget(shapes, total)
        found = rank_allocations["energy"].allocate(Evidence(values), budget)
        assert budget.stored(found) <= total
        best = min(
            _lost(values, budget, {f"w{n}.weight": r for n, r in enumerate(choice) if r < 4})
            for choice in itertools.product(range(1, 5), repeat=4)
            if sum(choice) * 16 <= total
        )
        assert _lost(values, budget, found) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_energy_loses_no_more_than_equal_shares(share):
    shapes = [(24, 24), (12, 24), (60, 24), (24, 60)]
    generator = np.random.default_rng(1)
    budget = _budget(shapes, int(share * sum(r * c for r, c in shapes)))
    values = {
        site.name: (np.sort(generator.exponential(size=min(site.shape)))[::-1] ** (1 + site.layer)).tolist()
        for site in budget.sites
    }
    found = rank_allocations["energy"].allocate(Evidence(values), budget)
    assert budget.stored(found) <= budget.total
    assert _lost(values, budget, found) <= _lost(values, budget, uniform_ranks(budget)) + 1e-12
    # No weight could have one rank more.
    for site in budget.sites:
        steps = [*budget.steps[site.name], None]
        rank = found.get(site.name)
        if rank is not None:
            more = steps[steps.index(rank) + 1]
            assert budget.stored(found) - stored(site.shape, rank) + stored(site.shape, more) > budget.total


def test_the_hull_lies_below_its_curve():
    points = curve([4.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5], (8, 8), range(1, 4))
    corners = hull(points)
    assert (corners[0], corners[-1]) == (0, len(points) - 1)
    for at, lost, _ in points:
        for first, second in itertools.pairwise(corners):
            (low, high_loss, _), (high, low_loss, _) = points[first], points[second]
            if low <= at <= high:
                line = high_loss + (low_loss - high_loss) * (at - low) / (high - low)
                assert lost >= line - 1e-12


def test_names_of_factors():
    assert factor_names("a.q_proj.weight") == ("a.q_proj.down.weight", "a.q_proj.up.weight")
    assert bias_names("a.q_proj.weight") == ("a.q_proj.bias", "a.q_proj.up.bias")
    assert {weight_of(name) for name in ("a.q.down.weight", "a.q.up.weight", "a.q.up.bias")} == {"a.q.weight"}
    assert weight_of("a.mlp.up_proj.weight") is None
