"""Masks: exact counts, zeros first, ties by position, against slow references."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.errors import TargetUnreachable
from compression.granularity import granularities
from compression.granularity.base import Pattern, parse_granularity, smallest, zeros_first
from compression.granularity.layer import best_start, candidate_starts, kept_layers
from compression.granularity.n_m import n_m_mask
from compression.granularity.unstructured import row_quotas, unstructured_mask


def _reference_smallest(values: list[float], count: int) -> list[bool]:
    """True at the `count` smallest, the first of equals."""
    order = sorted(range(len(values)), key=lambda index: (values[index], index))
    chosen = set(order[:count])
    return [index in chosen for index in range(len(values))]


def _scores(rows: int, columns: int, seed: int, levels: int | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.rand(rows, columns, generator=generator)
    return torch.randint(0, levels, (rows, columns), generator=generator).float()


@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    levels=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=150, deadline=None)
def test_layer_comparison_takes_the_smallest_of_all(rows, columns, share, seed, levels):
    scores = _scores(rows, columns, seed, levels)
    remove = round(share * rows * columns)
    mask = unstructured_mask(scores, remove, "layer")
    expected = _reference_smallest(scores.flatten().tolist(), remove)
    assert (~mask).flatten().tolist() == expected


@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    levels=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=150, deadline=None)
def test_row_comparison_is_exact_in_total_and_even_over_rows(rows, columns, share, seed, levels):
    scores = _scores(rows, columns, seed, levels)
    remove = round(share * rows * columns)
    mask = unstructured_mask(scores, remove, "row")
    removed = (~mask).sum(1)
    assert int(removed.sum()) == remove
    assert int(removed.max() - removed.min()) <= 1
    for row in range(rows):
        assert (~mask[row]).tolist() == _reference_smallest(scores[row].tolist(), int(removed[row]))


@given(
    zeros=st.lists(st.integers(0, 8), min_size=1, max_size=6),
    share=st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_row_quotas_spare_nothing_that_is_zero_already(zeros, share):
    remove = round(share * 8 * len(zeros))
    quotas = row_quotas(remove, len(zeros), 8, torch.tensor(zeros)).tolist()
    assert sum(quotas) == max(remove, sum(zeros))
    assert all(zero <= quota <= 8 for zero, quota in zip(zeros, quotas, strict=True))
    if sum(zeros) < remove:
        shared = [quota for zero, quota in zip(zeros, quotas, strict=True) if quota > zero]
        forced = [quota for zero, quota in zip(zeros, quotas, strict=True) if quota == zero]
        assert not shared or max(shared) - min(shared) <= 1
        assert not shared or all(quota >= min(shared) - 1 for quota in forced)


@pytest.mark.parametrize("comparison", ["row", "layer"])
def test_zeros_go_first(comparison: str):
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    weight[2, :10] = 0.0
    weight[5, 3] = -0.0
    mask = unstructured_mask(zeros_first(weight.abs(), weight), 64, comparison)
    pruned = weight.masked_fill(~mask, 0.0)
    assert int((pruned == 0).sum()) == 64
    assert int((~mask).sum()) == 64


def test_more_zeros_than_asked_are_all_in_the_mask_and_nothing_else():
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    weight[0] = 0.0
    for comparison in ("row", "layer"):
        mask = unstructured_mask(zeros_first(weight.abs(), weight), 4, comparison)
        assert torch.equal(mask, weight != 0)


def test_a_zero_score_is_not_a_zero_weight():
    weight = torch.tensor([[1.0, 2.0, 0.0, 3.0]])
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    mask = unstructured_mask(zeros_first(scores, weight), 1, "layer")
    assert mask.tolist() == [[True, True, False, True]]


@given(
    n=st.integers(1, 8),
    extra=st.integers(1, 8),
    groups=st.integers(1, 4),
    rows=st.integers(1, 4),
    seed=st.integers(0, 50),
)
@settings(max_examples=100, deadline=None)
def test_n_of_m_keeps_the_n_largest_of_every_group(n, extra, groups, rows, seed):
    m = n + extra
    scores = _scores(rows, groups * m, seed, levels=4)
    mask = n_m_mask(scores, n, m)
    for row in range(rows):
        for group in range(groups):
            part = slice(group * m, (group + 1) * m)
            expected = _reference_smallest(scores[row, part].tolist(), m - n)
            assert (~mask[row, part]).tolist() == expected


def test_n_of_m_agrees_with_torch_on_2_of_4():
    from torch.ao.pruning import WeightNormSparsifier

    linear = torch.nn.Linear(16, 8, bias=False)
    model = torch.nn.Sequential(linear)
    sparsifier = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    weight = linear.weight.detach().clone()
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    expected = model[0].parametrizations.weight[0].mask.bool()
    assert torch.equal(n_m_mask(weight.abs(), 2, 4), expected)


def test_layer_comparison_agrees_with_torch():
    from torch.nn.utils import prune

    linear = torch.nn.Linear(20, 10, bias=False)
    weight = linear.weight.detach().clone()
    prune.l1_unstructured(linear, "weight", amount=77)
    assert torch.equal(unstructured_mask(weight.abs(), 77, "layer"), linear.weight_mask.bool())


def test_n_of_m_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="divisible"):
        n_m_mask(torch.rand(2, 6), 2, 4)
    with pytest.raises(ValueError, match="pattern"):
        n_m_mask(torch.rand(2, 8), 4, 4)


def test_large_rows_in_pieces_give_the_same_mask(monkeypatch):
    scores = _scores(33, 40, 5)
    whole = unstructured_mask(scores, 700, "row")
    monkeypatch.setattr("compression.granularity.base.PIECE", 100)
    assert torch.equal(unstructured_mask(scores, 700, "row"), whole)


def test_smallest_with_no_and_all():
    scores = _scores(3, 5, 0)
    chosen = smallest(scores, torch.tensor([0, 5, 2]))
    assert chosen.sum(1).tolist() == [0, 5, 2]


@pytest.mark.parametrize("name", granularities.names())
def test_every_granularity_says_what_it_is(name: str):
    assert granularities[name].summary.endswith(".")
    assert granularities[name].pattern.startswith("^")


def test_parse_granularity():
    assert parse_granularity("2:4") == Pattern("n:m", 2, 4)
    assert parse_granularity("1:32") == Pattern("n:m", 1, 32)
    assert parse_granularity("layer") == Pattern("layer")
    assert parse_granularity("unstructured") == Pattern("unstructured")
    assert parse_granularity("16x16") == Pattern("block", shape=(16, 16))
    assert parse_granularity("1x8") == Pattern("block", shape=(1, 8))
    assert parse_granularity("999x1") == Pattern("block", shape=(999, 1))


@pytest.mark.parametrize(
    "bad",
    [
        "4:4", "0:4", "2:33", "rows", "2:4:8", "", "2:4 ", "2:4\n", "block", "n:m", "1x1", "0x4", "4x0",
        "01x4", "4X4", "4x", "x4", "4x4x4", "1000x1", "-1x4", "4x4\n", "\u0662:\u0664", "1\u0666x16", "4*4",
    ],
)  # fmt: skip
def test_what_is_no_granularity_is_refused(bad: str):
    with pytest.raises(ValueError, match="granularity"):
        parse_granularity(bad)


@pytest.mark.parametrize("text", ["unstructured", "layer", "2:4", "31:32", "16x16", "1x999", "300x2"])
def test_patterns_of_the_catalogue_match_what_is_parsed(text: str):
    kind = parse_granularity(text).kind
    assert re.match(granularities[kind].pattern, text)
    for entry in granularities:
        if entry.name != kind:
            assert not re.match(entry.pattern, text)


def test_runs_of_layers_spare_the_first_and_the_last():
    assert candidate_starts(6, 2, 1, 1) == range(1, 4)
    assert candidate_starts(3, 1, 1, 1) == range(1, 2)
    assert kept_layers(6, 2, 2) == [0, 1, 4, 5]
    assert best_start([0.3, 0.1, 0.1], range(1, 4)) == 2
    with pytest.raises(TargetUnreachable, match="at most 4 can"):
        candidate_starts(6, 5, 1, 1)
