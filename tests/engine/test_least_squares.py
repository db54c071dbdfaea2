"""Least squares on the kept weights, against lstsq in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from compression.updates import updates
from compression.updates.base import Cut
from compression.updates.least_squares import LeastSquares
from compression.updates.quadratic import (
    WeightTooWide,
    conjugate_gradients,
)
from compression.updates.sparsegpt import SparseGPT
from tests.engine.update_tasks import (
    error,
    first_cut,
    make_layer,
    make_task,
    singular_inputs,
)


@pytest.mark.parametrize("comparison", ["row", "layer"])
@pytest.mark.parametrize("seed", range(3))
def test_least_squares_is_what_lstsq_finds(seed, comparison):
    weight, inputs = make_layer(12, 40, 300, seed)
    task = make_task(weight, inputs, sparsity=0.6, comparison=comparison)
    cut = first_cut(task)
    result = updates["least-squares"].apply(task, cut)
    matrix, wanted = inputs.double().numpy(), (inputs.double() @ weight.double().T).numpy()
    for row in range(12):
        kept = cut.mask[row].numpy()
        expected = np.linalg.lstsq(matrix[:, kept], wanted[:, row], rcond=None)[0]
        assert np.allclose(result.weight[row].numpy()[kept], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["few tokens", "copies", "dead inputs"])
def test_least_squares_of_singular_systems_leaves_no_more_than_lstsq(kind):
    inputs = singular_inputs(kind)
    weight = make_layer(16, 32, 1, 3)[0]
    task = make_task(weight, inputs)
    result = updates["least-squares"].apply(task, first_cut(task))
    matrix, wanted = inputs.double().numpy(), (inputs.double() @ weight.double().T).numpy()
    least = 0.0
    for row in range(16):
        kept = result.mask[row].numpy()
        solution = np.linalg.lstsq(matrix[:, kept], wanted[:, row], rcond=None)[0]
        least += float(((matrix[:, kept] @ solution - wanted[:, row]) ** 2).sum())
    assert error(task, result) <= least * 1.001 + 1e-5 * float((wanted**2).sum())
    assert float(result.weight.abs().max()) < 1e3


@pytest.mark.parametrize("text", ["unstructured", "2:4", "4x4"])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_beats_least_squares_under_the_same_mask(seed, text):
    task = make_task(*make_layer(32, 64, 400, seed), text, 0.5)
    cut = SparseGPT().apply(task, first_cut(task))
    solved = updates["least-squares"].apply(task, cut)
    assert torch.equal(solved.mask, cut.mask)
    assert error(task, solved) <= error(task, cut)
    steps = conjugate_gradients(task.dense, cut.mask, cut.weight, task.statistics.hessian, 200)
    assert error(task, solved) <= error(task, Cut(steps, cut.mask)) * (1 + 1e-6)


def test_least_squares_refuses_wide_weights():
    task = make_task(*make_layer(4, 24, 100, 0))
    with pytest.raises(WeightTooWide, match=r"site has 24 inputs.*sparsegpt or alps") as caught:
        LeastSquares(largest_inputs=23).apply(task, first_cut(task))
    assert caught.value.code == "weight_too_wide"
