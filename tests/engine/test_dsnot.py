"""DSnoT: swaps that lower the mean error, against a loop over rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from compression.updates import updates
from compression.updates.base import Task
from compression.updates.dsnot import DSnoT
from tests.engine.update_tasks import (
    CASES,
    check,
    first_cut,
    make_layer,
    make_task,
)


def _mean_error(task: Task, mask: Tensor) -> Tensor:
    return ((task.dense * ~mask).double() @ task.statistics.need("means").double()).abs()


@pytest.mark.parametrize(("text", "comparison"), CASES[:-1])
@pytest.mark.parametrize("seed", range(3))
def test_dsnot_lowers_the_mean_error_of_every_row(seed, text, comparison):
    weight, inputs = make_layer(16, 84 if text == "3:7" else 96, 300, seed)
    task = make_task(weight, inputs + 1.0, text, 0.5, comparison)
    cut = first_cut(task)
    result = DSnoT(dsnot_threshold=0.001).apply(task, cut)
    check(task, result)
    before, after = _mean_error(task, cut.mask), _mean_error(task, result.mask)
    assert bool((after <= before).all())
    assert float(after.sum()) < 0.35 * float(before.sum())
    assert result.mask.sum(1).tolist() == cut.mask.sum(1).tolist()
    assert torch.equal(result.weight, weight * result.mask)


def test_dsnot_is_what_a_loop_over_rows_does():
    weight, inputs = make_layer(12, 40, 200, 3)
    task = make_task(weight, inputs + 0.5, sparsity=0.6)
    cut = first_cut(task)
    result = DSnoT(dsnot_cycles=5, dsnot_threshold=0.01).apply(task, cut)
    means, norms = inputs.mean(0).add(0.5).double(), (inputs + 0.5).norm(dim=0).double()
    variance = norms**2 / len(inputs) - means**2
    for row in range(12):
        kept = cut.mask[row].clone()
        values, free = weight[row].double(), torch.ones(40, dtype=torch.bool)
        for _ in range(5):
            lost = float((values * means)[~kept].sum())
            if abs(lost) <= 0.01 * float((values**2 * variance)[~kept].sum().sqrt()):
                break
            sign = 1 if lost > 0 else -1
            back = {
                k: sign * float(values[k] * means[k] / variance[k])
                for k in range(40)
                if free[k] and not kept[k]
            }
            grow = max(back, key=lambda k: back[k])
            if back[grow] <= 0:
                break
            free[grow] = False
            left = lost - float(values[grow] * means[grow])
            able = [k for k in range(40) if free[k] and kept[k] and float(values[k] * means[k]) * left < 0]
            if not able:
                continue
            gone = min(able, key=lambda k: float(values[k].abs() * norms[k]))
            fresh = left + float(values[gone] * means[gone])
            more = float((values**2 * variance)[gone] - (values**2 * variance)[grow])
            if abs(fresh) < abs(lost) and fresh**2 + more < lost**2:
                free[gone] = False
                kept[grow], kept[gone] = True, False
        assert torch.equal(result.mask[row], kept)


def test_dsnot_leaves_blocks_and_rows_without_mean_error_alone():
    weight, inputs = make_layer(8, 32, 200, 0)
    task = make_task(weight, inputs, "4x4", 0.5)
    cut = first_cut(task)
    assert updates["dsnot"].apply(task, cut) is cut
    task = make_task(weight, inputs - inputs.mean(0))
    cut = first_cut(task)
    assert torch.equal(updates["dsnot"].apply(task, cut).mask, cut.mask)


def test_dsnot_does_not_depend_on_how_many_tokens_there_are():
    weight, inputs = make_layer(16, 64, 200, 1)
    once, often = make_task(weight, inputs + 1.0), make_task(weight, (inputs + 1.0).repeat(4, 1))
    results = [DSnoT(dsnot_threshold=0.05).apply(task, first_cut(task)) for task in (once, often)]
    assert torch.equal(results[0].mask, results[1].mask)
