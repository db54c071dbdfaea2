"""ALPS and combinatorial refinement: never worse than their start, near the best of all supports."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from compression.updates import quadratic, updates
from compression.updates.alps import ALPS
from compression.updates.combinatorial import Combinatorial
from compression.updates.quadratic import (
    conjugate_gradients,
    damped,
    row_errors,
)
from compression.updates.sparsegpt import SparseGPT
from compression.updates.swaps import swap
from tests.engine.update_tasks import (
    CASES,
    check,
    error,
    first_cut,
    make_layer,
    make_task,
)

STRONG = [ALPS(), Combinatorial()]


@pytest.mark.parametrize("update", STRONG, ids=lambda update: update.name)
@pytest.mark.parametrize(("text", "comparison"), CASES)
@pytest.mark.parametrize("first", ["none", "sparsegpt", "least-squares", "alps", "combinatorial"])
def test_searches_are_never_worse_than_what_they_start_from(first, text, comparison, update):
    columns = 56 if text == "3:7" else 48
    task = make_task(*make_layer(24, columns, 300, 11), text, 0.6, comparison)
    cut = updates[first].apply(task, first_cut(task))
    result = update.apply(task, cut)
    check(task, result)
    assert error(task, result) <= error(task, cut)
    if first in ("none", "sparsegpt"):
        assert error(task, result) < 0.9 * error(task, cut)


@pytest.mark.parametrize("update", STRONG, ids=lambda update: update.name)
@pytest.mark.parametrize("comparison", ["row", "layer"])
def test_searches_beat_sparsegpt_on_average_at_high_sparsity(update, comparison):
    ratios = []
    for seed in range(8):
        task = make_task(*make_layer(32, 64, 300, seed), sparsity=0.7, comparison=comparison)
        cut = first_cut(task)
        ratios.append(error(task, update.apply(task, cut)) / error(task, SparseGPT().apply(task, cut)))
    assert sum(ratios) / len(ratios) < 0.8


def _least(weight: Tensor, hessian: Tensor, keep: int) -> float:
    """The least error of a row float64 [in] over all supports of a size, by trying every one."""
    best = float("inf")
    for kept in itertools.combinations(range(len(weight)), keep):
        lost = [place for place in range(len(weight)) if place not in kept]
        block = hessian[lost][:, lost] - hessian[lost][:, kept] @ torch.linalg.solve(
            hessian[list(kept)][:, kept], hessian[list(kept)][:, lost]
        )
        best = min(best, float(weight[lost] @ block @ weight[lost]))
    return best


def test_searches_come_near_the_best_of_all_supports():
    weight, inputs = make_layer(12, 10, 200, 5)
    task = make_task(weight, inputs)
    hessian = task.statistics.hessian.double()
    least = torch.tensor([_least(row.double(), hessian, 5) for row in weight])
    for update, most in ((ALPS(damping=1e-6), 1.3), (Combinatorial(damping=1e-6), 1.1)):
        result = update.apply(task, first_cut(task))
        errors = row_errors(weight, result.weight, hessian)
        assert bool((errors >= least * (1 - 1e-4)).all())
        assert float(errors.sum()) <= most * float(least.sum())


@pytest.mark.parametrize("text", ["unstructured", "2:4"])
def test_a_swap_is_the_best_pair_with_its_exact_change(text):
    weight, inputs = make_layer(6, 12, 100, 9)
    task = make_task(weight, inputs, text)
    hessian, mask = task.statistics.hessian, first_cut(task).mask
    dead = torch.zeros(12, dtype=torch.bool)
    swapped, result = swap(task, hessian, mask, dead, 1)
    exact = hessian.double()

    def solved(row: int, kept: Tensor) -> float:
        lost = ~kept
        block = exact[lost][:, lost]
        block = block - exact[lost][:, kept] @ torch.linalg.solve(exact[kept][:, kept], exact[kept][:, lost])
        values = weight[row].double()[lost]
        return float(values @ block @ values)

    for row in range(6):
        options = {(): solved(row, mask[row])}
        for out, into in itertools.product(mask[row].nonzero().flatten(), (~mask[row]).nonzero().flatten()):
            if text == "unstructured" or out // 4 == into // 4:
                kept = mask[row].clone()
                kept[out], kept[into] = False, True
                options[int(out), int(into)] = solved(row, kept)
        best = min(options.values())
        assert solved(row, result[row]) == pytest.approx(best, rel=1e-4)
        assert float(row_errors(weight, swapped, hessian)[row]) == pytest.approx(best, rel=1e-3)


def test_many_swaps_keep_the_inverse_right():
    weight, inputs = make_layer(16, 48, 300, 10)
    weight[:, 7] = 0.0
    inputs[:, 9] = 0.0
    task = make_task(weight, inputs, sparsity=0.7, comparison="layer")
    hessian, mask = damped(task.statistics.hessian, 0.01), first_cut(task).mask
    dead = torch.zeros(48, dtype=torch.bool)
    dead[9] = True
    before = None
    for rounds in (0, 1, 3, 30):
        swapped, result = swap(task, hessian, mask, dead, rounds)
        assert result.sum(1).tolist() == mask.sum(1).tolist()
        assert not bool(result[:, 7].any())
        settled = conjugate_gradients(weight, result, swapped, hessian, 100)
        found = row_errors(weight, settled, hessian)
        if rounds:
            assert torch.allclose(row_errors(weight, swapped, hessian), found, rtol=1e-3)
            assert bool((found <= before * (1 + 1e-4)).all())
        before = found


def test_alps_stops_when_there_is_nothing_to_find():
    weight, inputs = make_layer(8, 16, 100, 0)
    weight[:, ::2] = 0.0
    task = make_task(weight, inputs)
    cut = first_cut(task)
    for update in STRONG:
        result = update.apply(task, cut)
        assert torch.equal(result.mask, cut.mask)
        assert error(task, result) == 0.0


@pytest.mark.parametrize("name", ["sparsegpt", "alps"])
def test_wide_weights_are_factored_in_float32(name, monkeypatch):
    task = make_task(*make_layer(16, 48, 300, 12))
    cut = first_cut(task)
    exact = updates[name].apply(task, cut)
    monkeypatch.setattr(quadratic, "EXACT_INPUTS", 0)
    rough = updates[name].apply(task, cut)
    check(task, rough)
    assert error(task, rough) == pytest.approx(error(task, exact), rel=1e-2)
