"""All updates: exact counts, exact zeros, singular inputs, parameters."""

from __future__ import annotations

import pytest
import torch

from compression.parameters import all_parameters, configured
from compression.updates import updates
from compression.updates.alps import ALPS
from tests.engine.update_tasks import (
    CASES,
    WITHOUT_BLOCKS,
    check,
    error,
    first_cut,
    make_layer,
    make_task,
    singular_inputs,
)

NAMED_CASES = [
    (name, *case)
    for name in updates.names()
    for case in CASES
    if name not in WITHOUT_BLOCKS or case[0] != "4x4"
]


@pytest.mark.parametrize(("name", "text", "comparison"), NAMED_CASES)
def test_counts_are_exact_and_nothing_is_changed_in_place(name, text, comparison):
    weight, inputs = make_layer(12, 28 if text == "3:7" else 24, 64, 1)
    if text == "unstructured":
        weight[3, :20] = 0.0
        weight[:, 5] = 0.0
    task = make_task(weight, inputs, text, 0.5, comparison)
    cut = first_cut(task)
    before = [cut.weight.clone(), cut.mask.clone(), weight.clone(), task.statistics.hessian.clone()]
    result = updates[name].apply(task, cut)
    check(task, result)
    after = [cut.weight, cut.mask, task.dense, task.statistics.hessian]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    again = updates[name].apply(task, cut)
    assert torch.equal(result.weight, again.weight)
    assert torch.equal(result.mask, again.mask)


@pytest.mark.parametrize("comparison", ["row", "layer"])
@pytest.mark.parametrize("name", updates.names())
def test_more_zeros_than_asked_for_all_stay(name, comparison):
    weight, inputs = make_layer(8, 32, 100, 2)
    weight[:, :20] = 0.0
    task = make_task(weight, inputs, "unstructured", 0.25, comparison)
    result = updates[name].apply(task, first_cut(task))
    check(task, result)
    assert int((~result.mask).sum()) == 8 * 20


@pytest.mark.parametrize("kind", ["few tokens", "copies", "dead inputs"])
@pytest.mark.parametrize(
    ("name", "text", "comparison"),
    [case for case in NAMED_CASES if case[1] in ("unstructured", "2:4", "4x4")],
)
def test_singular_hessians_work(name, text, comparison, kind):
    inputs = singular_inputs(kind)
    task = make_task(make_layer(16, 32, 1, 3)[0], inputs, text, 0.5, comparison)
    cut = first_cut(task)
    result = updates[name].apply(task, cut)
    check(task, result)
    if name != "dsnot":
        assert error(task, result) <= error(task, cut) * (1 + 1e-9)
    dead = inputs.square().sum(0) == 0
    kept = dead & result.mask
    assert torch.equal(result.weight[kept], task.dense[kept])


def test_all_inputs_dead():
    task = make_task(make_layer(8, 16, 1, 0)[0], torch.zeros(10, 16))
    for update in updates:
        check(task, update.apply(task, first_cut(task)))


def test_parameters_are_described_and_mean_the_same_wherever_they_appear():
    found = all_parameters(updates)
    expected = {"damping", "block_size", "adaptive_mask", "largest_inputs", "dsnot_cycles", "dsnot_threshold"}
    expected |= {"alps_iterations", "alps_rho", "pcg_iterations", "iht_rounds", "swap_rounds"}
    assert expected <= set(found)
    assert all(item.description for item in found.values())
    assert configured(updates["alps"], {"pcg_iterations": 3, "block_size": 7}) == ALPS(pcg_iterations=3)
