"""SparseGPT and the damped factor it stands on, against an independent reference in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from compression.updates.base import Cut
from compression.updates.quadratic import (
    HessianSingular,
    conjugate_gradients,
    damped,
    damped_factor,
    row_errors,
)
from compression.updates.sparsegpt import SparseGPT, spread
from tests.engine.update_tasks import (
    error,
    first_cut,
    make_layer,
    make_task,
)


def _reference(weight, hessian, damping, size, sparsity, group=(0, 0), kept=None):
    """SparseGPT by its definition in float64: after each column what is left is inverted anew."""
    weight, rows, inputs = weight.copy(), *weight.shape
    hessian = hessian + damping * np.diag(hessian).mean() * np.eye(inputs)
    inverses = [np.linalg.inv(hessian[at:, at:]) for at in range(inputs)]
    cost = np.array([inverse[0, 0] for inverse in inverses])
    mask = np.ones((rows, inputs), dtype=bool) if kept is None else kept
    for at in range(inputs):
        width = group[1] or size
        if kept is None and at % width == 0:
            part = slice(at, at + width)
            scores = weight[:, part] ** 2 / cost[part]
            if group[1]:
                order = np.argsort(scores, axis=1)[:, : group[1] - group[0]]
                np.put_along_axis(mask[:, part], order, False, axis=1)
            else:
                count = round(sparsity * scores.size)
                mask[:, part] = scores > np.partition(scores.ravel(), count - 1)[count - 1]
        lost = np.where(mask[:, at], 0.0, weight[:, at])
        weight[:, at:] -= np.outer(lost / cost[at], inverses[at][0])
    return weight * mask, mask


@pytest.mark.parametrize("text", ["unstructured", "2:4", "3:6"])
@pytest.mark.parametrize("size", [12, 24, 48])
def test_sparsegpt_is_what_its_definition_says(text, size):
    weight, inputs = make_layer(10, 48, 200, 7)
    task = make_task(weight, inputs, text, 0.5, "layer")
    pattern = task.rule.pattern
    result = SparseGPT(block_size=size).apply(task, first_cut(task))
    hessian = task.statistics.hessian.double().numpy()
    expected, mask = _reference(
        weight.double().numpy(), hessian, 0.01, size, 0.5, (pattern.keep, pattern.group)
    )
    assert np.array_equal(result.mask.numpy(), mask)
    assert np.allclose(result.weight.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_sparsegpt_follows_a_given_mask():
    weight, inputs = make_layer(10, 48, 200, 8)
    task = make_task(weight, inputs)
    cut = first_cut(task)
    result = SparseGPT(adaptive_mask=False).apply(task, cut)
    expected, _ = _reference(
        weight.double().numpy(),
        task.statistics.hessian.double().numpy(),
        0.01,
        48,
        0.5,
        kept=cut.mask.numpy(),
    )
    assert torch.equal(result.mask, cut.mask)
    assert np.allclose(result.weight.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", ["unstructured", "2:4", "4x4"])
def test_what_starts_over_owes_the_incoming_cut_nothing(text):
    weight, inputs = make_layer(8, 16, 40, 3)
    task = make_task(weight, inputs, text, 0.5, "layer")
    assert SparseGPT().starts_over
    assert not SparseGPT(adaptive_mask=False).starts_over
    nothing = Cut(task.dense, torch.ones_like(task.dense, dtype=torch.bool))
    found, expected = (SparseGPT().apply(task, cut) for cut in (nothing, first_cut(task)))
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.mask, expected.mask)


def test_sparsegpt_removes_dead_inputs_first():
    weight, inputs = make_layer(8, 32, 100, 4)
    inputs[:, [3, 30]] = 0.0
    task = make_task(weight, inputs)
    result = SparseGPT(block_size=16).apply(task, first_cut(task))
    assert not bool(result.mask[:, [3, 30]].any())


def test_zeros_of_one_block_spare_the_others():
    weight, inputs = make_layer(8, 64, 200, 5)
    weight[:, 48:] = 0.0
    task = make_task(weight, inputs, sparsity=0.5)
    result = SparseGPT(block_size=16).apply(task, first_cut(task))
    assert (~result.mask).reshape(8, 4, 16).sum(2).tolist() == [[5, 5, 6, 16]] * 8


@pytest.mark.parametrize("seed", range(20))
def test_spread_is_exact_and_holds_the_zeros(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 40, (6,), generator=generator)
    zeros = (torch.rand(5, 6, generator=generator) ** 3 * (sizes + 1)).long().clamp_max(sizes)
    room = sizes.sum() - zeros.sum(1)
    totals = zeros.sum(1) + (torch.rand(5, generator=generator) * (room + 1)).long().clamp_max(room)
    counts = spread(totals, sizes, zeros)
    assert counts.sum(1).tolist() == totals.tolist()
    assert bool((counts >= zeros).all())
    assert bool((counts <= sizes).all())


def test_a_hessian_that_cannot_be_factored_names_its_site():
    with pytest.raises(HessianSingular, match=r"more calibration data or a larger damping") as caught:
        damped_factor(torch.tensor([[1.0, 9.0], [9.0, 1.0]]), 0.01, "layers.0.q")
    assert caught.value.code == "hessian_singular"
    assert "layers.0.q" in caught.value.message
    weight, inputs = make_layer(4, 8, 20, 0)
    inputs[0, 0] = torch.inf
    task = make_task(weight, inputs)
    with pytest.raises(HessianSingular, match="not finite"):
        SparseGPT().apply(task, first_cut(task))


def test_damping_is_raised_until_the_factor_exists():
    hessian = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    lower, scale = damped_factor(hessian, 0.01, "site")
    factor = lower.T * scale
    expected = hessian + 0.1 * torch.eye(2)
    assert torch.allclose(factor @ factor.T, expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 256, 257, 600])
def test_the_factor_of_wide_hessians_is_put_together_from_halves(size):
    generator = torch.Generator().manual_seed(size)
    inputs = torch.randn(2 * size, size, generator=generator)
    hessian = inputs.T @ inputs
    lower, scale = damped_factor(hessian, 0.01, "site")
    factor = (lower.T * scale).double()
    expected = damped(hessian, 0.01).double()
    assert torch.equal(lower, lower.tril())
    assert torch.allclose(factor @ factor.T, expected, atol=1e-5 * float(expected.max()))
    hessian[size // 3, size // 3] = -float(hessian.max())
    with pytest.raises(HessianSingular):
        damped_factor(hessian, 0.01, "site")


def test_conjugate_gradients_end_at_the_least_squares_solution():
    weight, inputs = make_layer(6, 24, 200, 6)
    task = make_task(weight, inputs)
    cut = first_cut(task)
    hessian = task.statistics.hessian
    solved = conjugate_gradients(weight, cut.mask, cut.weight, hessian, 60)
    gradient = (weight - solved) @ hessian * cut.mask
    assert float(gradient.abs().max()) < 1e-3 * float((weight @ hessian).abs().max())
    steps = [conjugate_gradients(weight, cut.mask, cut.weight, hessian, count) for count in range(0, 12, 2)]
    errors = [float(row_errors(weight, step, hessian).sum()) for step in steps]
    assert all(later < earlier for earlier, later in itertools.pairwise(errors))


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
@pytest.mark.parametrize("seed", range(6))
def test_sparsegpt_errs_less_than_magnitude(seed, sparsity):
    task = make_task(*make_layer(32, 64, 400, seed), sparsity=sparsity)
    cut = first_cut(task)
    assert error(task, SparseGPT().apply(task, cut)) < error(task, cut)
    assert error(task, SparseGPT(adaptive_mask=False).apply(task, cut)) < error(task, cut)
