"""Updates: exact counts, exact zeros, and errors against independent references in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from compression.criteria.base import SiteStatistics
from compression.granularity.base import parse_granularity
from compression.granularity.rule import Rule
from compression.parameters import all_parameters, configured
from compression.updates import quadratic, updates
from compression.updates.alps import ALPS
from compression.updates.base import Cut, Task
from compression.updates.combinatorial import Combinatorial
from compression.updates.dsnot import DSnoT
from compression.updates.least_squares import LeastSquares
from compression.updates.quadratic import (
    HessianSingular,
    WeightTooWide,
    conjugate_gradients,
    damped,
    damped_factor,
    row_errors,
)
from compression.updates.sparsegpt import SparseGPT, spread
from compression.updates.swaps import swap

# Updates that refuse blocks of weights.
WITHOUT_BLOCKS = {"exact-obs"}
PATTERNS = ["unstructured", "2:4", "4:8", "3:7", "4x4"]
CASES = [("unstructured", "row"), ("unstructured", "layer"), *((text, "row") for text in PATTERNS[1:])]


NAMED_CASES = [
    (name, *case)
    for name in updates.names()
    for case in CASES
    if name not in WITHOUT_BLOCKS or case[0] != "4x4"
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_layer(rows: int, columns: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight [rows, columns] and inputs [tokens, columns] that are correlated, off centre and of unequal
    size.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    spectrum = torch.arange(1, columns + 1) ** -0.5 * columns**0.5
    inputs = (normal(tokens, columns) * spectrum) @ normal(columns, columns) / columns**0.5
    inputs = (inputs + 0.3 * normal(tokens, columns) + 0.3 * normal(columns)) * torch.exp(
        0.5 * normal(columns)
    )
    return normal(rows, columns) * (0.5 + torch.rand(rows, 1, generator=generator)), inputs


def make_task(
    weight: Tensor, inputs: Tensor, text: str = "unstructured", sparsity: float = 0.5, comparison: str = "row"
) -> Task:
    """Magnitude scores, and a rule that removes `sparsity` of the weight."""
    pattern = parse_granularity(text)
    unit = pattern.shape[0] * pattern.shape[1]
    remove = round(sparsity * weight.numel() / unit) * unit
    if pattern.kind == "n:m":
        remove = weight.numel() // pattern.group * (pattern.group - pattern.keep)
    hessian = inputs.T @ inputs
    statistics = SiteStatistics(hessian.diagonal().sqrt(), inputs.shape[0], inputs.mean(0), hessian)
    return Task(weight, weight.abs(), Rule(pattern, remove, comparison), statistics, "site", has_bias=True)


def first_cut(task: Task) -> Cut:
    mask = task.rule.mask(task.scores, task.dense)
    return Cut(task.dense * mask, mask)


def error(task: Task, cut: Cut) -> float:
    assert task.statistics is not None
    return float(row_errors(task.dense, cut.weight, task.statistics.need("hessian")).sum())


def check(task: Task, cut: Cut) -> None:
    """What holds for every cut."""
    removed, start = ~cut.mask, ~first_cut(task).mask
    assert cut.mask.dtype == torch.bool
    assert cut.weight.dtype == torch.float32
    assert bool(torch.isfinite(cut.weight).all())
    assert bool((cut.weight[removed] == 0).all())
    assert int(removed.sum()) == int(start.sum())
    pattern = task.rule.pattern
    if pattern.kind == "n:m":
        assert bool((cut.mask.reshape(-1, pattern.group).sum(1) == pattern.keep).all())
    elif pattern.kind == "block":
        rows, columns = pattern.shape
        parts = cut.mask.reshape(cut.mask.shape[0] // rows, rows, -1, columns).sum((1, 3))
        assert set(parts.unique().tolist()) <= {0, rows * columns}
    elif task.rule.comparison == "row":
        assert removed.sum(1).tolist() == start.sum(1).tolist()
    if pattern.kind == "unstructured" and int((task.dense == 0).sum()):
        assert bool(removed[task.dense == 0].all())


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


def _singular(kind: str) -> Tensor:
    inputs = make_layer(16, 32, 80, 3)[1]
    if kind == "few tokens":
        return inputs[:6]
    if kind == "copies":
        inputs[:, 8:16] = inputs[:, :8]
    else:
        inputs[:, [0, 5, 31]] = 0.0
    return inputs


@pytest.mark.parametrize("kind", ["few tokens", "copies", "dead inputs"])
@pytest.mark.parametrize(
    ("name", "text", "comparison"),
    [case for case in NAMED_CASES if case[1] in ("unstructured", "2:4", "4x4")],
)
def test_singular_hessians_work(name, text, comparison, kind):
    inputs = _singular(kind)
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
    inputs = _singular(kind)
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


def test_parameters_are_described_and_mean_the_same_wherever_they_appear():
    found = all_parameters(updates)
    expected = {"damping", "block_size", "adaptive_mask", "largest_inputs", "dsnot_cycles", "dsnot_threshold"}
    expected |= {"alps_iterations", "alps_rho", "pcg_iterations", "iht_rounds", "swap_rounds"}
    assert expected <= set(found)
    assert all(item.description for item in found.values())
    assert configured(updates["alps"], {"pcg_iterations": 3, "block_size": 7}) == ALPS(pcg_iterations=3)
