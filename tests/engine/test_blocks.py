"""Blocks of weights, and rules that turn scores into masks, against slow references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compression.granularity.base import Pattern, parse_granularity, zeros_first
from compression.granularity.blocks import block_mask, block_scores
from compression.granularity.n_m import n_m_mask
from compression.granularity.rule import Rule
from compression.granularity.unstructured import unstructured_mask

shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))


def _scores(rows: int, columns: int, seed: int, levels: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.rand(rows, columns, generator=generator)
    return torch.randint(0, levels, (rows, columns), generator=generator).float()


def _blocks(scores: Tensor, shape: tuple[int, int]) -> dict[tuple[int, int], float]:
    """Sum of each block by its place, row by row."""
    height, width = shape
    values = scores.double().tolist()
    return {
        (i, j): sum(values[i + a][j + b] for a in range(height) for b in range(width))
        for i in range(0, len(values), height)
        for j in range(0, len(values[0]), width)
    }


def _reference(scores: Tensor, shape: tuple[int, int], count: int) -> Tensor:
    """Keep-mask without the `count` blocks of the smallest sums; the first of equals go."""
    sums = _blocks(scores, shape)
    mask = torch.ones(scores.shape, dtype=torch.bool)
    for i, j in sorted(sums, key=lambda place: (sums[place], place))[:count]:
        mask[i : i + shape[0], j : j + shape[1]] = False
    return mask


@given(
    shape=shapes,
    places=shapes,
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    levels=st.sampled_from([1, 3]),
)
@settings(max_examples=100, deadline=None)
def test_the_blocks_with_the_smallest_sums_go(shape, places, share, seed, levels):
    scores = _scores(shape[0] * places[0], shape[1] * places[1], seed, levels)
    count = round(share * places[0] * places[1])
    mask = block_mask(scores, shape, count * shape[0] * shape[1])
    assert mask.dtype == torch.bool
    assert int((~mask).sum()) == count * shape[0] * shape[1]
    assert torch.equal(mask, _reference(scores, shape, count))


def test_sums_of_blocks_are_those_of_a_loop():
    scores = _scores(12, 20, 1) * 1e4
    found = block_scores(scores, (3, 5))
    assert found.dtype == torch.float32
    assert found.shape == (4, 4)
    for (i, j), value in _blocks(scores, (3, 5)).items():
        assert float(found[i // 3, j // 5]) == pytest.approx(value, rel=1e-6)


def test_blocks_refuse_what_does_not_divide():
    scores = _scores(6, 8, 0)
    for shape in ((4, 4), (3, 3), (12, 8)):
        with pytest.raises(ValueError, match=r"\(6, 8\) cannot be cut into blocks"):
            block_scores(scores, shape)
    with pytest.raises(ValueError, match="7 weights are no whole number of blocks of 2x4"):
        block_mask(scores, (2, 4), 7)


# -- rules


def test_weights_that_are_zero_count_nothing_in_a_block():
    weight = _scores(8, 8, 2) + 0.5
    weight[4:, :4] = 0.0
    weight[0, 0] = 0.0
    scores = torch.ones(8, 8)
    rule = Rule(Pattern("block", shape=(4, 4)), 16)
    mask = rule.mask(scores, weight)
    assert torch.equal(mask, _reference(scores * (weight != 0), (4, 4), 1))
    assert not bool(mask[4:, :4].any())
    # Then the block with a single zero.
    twice = Rule(Pattern("block", shape=(4, 4)), 32).mask(scores, weight)
    assert not bool(twice[:4, :4].any())


@pytest.mark.parametrize("comparison", ["row", "layer"])
def test_a_rule_takes_the_mask_of_its_granularity(comparison):
    weight, scores = _scores(8, 24, 3) - 0.5, _scores(8, 24, 4)
    weight[2, :7] = 0.0
    before = [weight.clone(), scores.clone()]
    ordered = zeros_first(scores, weight)
    found = Rule(Pattern("unstructured"), 70, comparison).mask(scores, weight)
    assert torch.equal(found, unstructured_mask(ordered, 70, comparison))
    assert int((~found).sum()) == 70
    assert not bool(found[weight == 0].any())
    assert torch.equal(
        Rule(Pattern("n:m", 3, 8), 0, comparison).mask(scores, weight), n_m_mask(ordered, 3, 8)
    )
    blocks = Rule(Pattern("block", shape=(2, 3)), 60, comparison).mask(scores, weight)
    assert torch.equal(blocks, _reference(scores * (weight != 0), (2, 3), 10))
    assert torch.equal(weight, before[0])
    assert torch.equal(scores, before[1])


@pytest.mark.parametrize(
    ("text", "window"), [("unstructured", 1), ("2:4", 4), ("5:9", 9), ("16x8", 8), ("4x1", 1)]
)
def test_windows_are_as_wide_as_what_is_decided_together(text, window):
    assert Rule(parse_granularity(text), 0).window() == window
