"""Allocations: exact sums, fair shares, the exact global threshold with a minimum density."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.allocation import allocations
from compression.allocation.base import most_removable
from compression.allocation.globally import global_counts, score_keys
from compression.anatomy.budget import remove_count
from compression.errors import TargetUnreachable


def _stream(scores: dict[str, torch.Tensor]):
    return lambda: iter(scores.items())


def _scores(seed: int, sizes: list[int], levels: int | None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for number, size in enumerate(sizes):
        values = torch.rand(size, generator=generator) * (number + 1)
        if levels is not None:
            values = (values * levels).floor()
        values[torch.rand(size, generator=generator) < 0.1] = -1.0
        result[f"s{number}"] = values
    return result


def _reference(scores: dict[str, torch.Tensor], caps: dict[str, int], remove: int) -> dict[str, int]:
    """One by one: the smallest remaining score of all sites that may still lose something; ties in site
    order.
    """
    items = sorted(
        (max(float(value), -1.0), position, site)
        for position, (site, values) in enumerate(scores.items())
        for value in values.tolist()
    )
    counts = dict.fromkeys(scores, 0)
    for _, _, site in items:
        if sum(counts.values()) == remove:
            break
        if counts[site] < caps[site]:
            counts[site] += 1
    return counts


@pytest.mark.parametrize("name", allocations.names())
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    sparsity=st.floats(0.01, 0.9),
    seed=st.integers(0, 50),
    levels=st.sampled_from([None, 2]),
)
@settings(max_examples=60, deadline=None)
def test_sums_are_exact_and_no_site_loses_more_than_it_has(name, sizes, sparsity, seed, levels):
    scores = _scores(seed, sizes, levels)
    elements = {site: values.numel() for site, values in scores.items()}
    remove = remove_count(sparsity, sum(sizes))
    counts = allocations[name].allocate(elements, _stream(scores), remove, 0.0)
    assert list(counts) == list(elements)
    assert sum(counts.values()) == remove
    assert all(0 <= counts[site] <= elements[site] for site in elements)


@pytest.mark.parametrize("name", allocations.names())
def test_every_allocation_says_what_it_is(name: str):
    assert allocations[name].summary.endswith(".")


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=8), sparsity=st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_uniform_is_within_one_weight_everywhere(sizes, sparsity):
    elements = {str(number): size for number, size in enumerate(sizes)}
    remove = remove_count(sparsity, sum(sizes))
    counts = allocations["uniform"].allocate(elements, None, remove, 0.05)
    for site, size in elements.items():
        assert abs(counts[site] - remove * size / sum(sizes)) <= 1
        assert abs(counts[site] - sparsity * size) <= 1.5


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    share=st.floats(0, 1),
    density=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(0, 200),
    levels=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=200, deadline=None)
def test_global_is_the_exact_threshold(sizes, share, density, seed, levels):
    scores = _scores(seed, sizes, levels)
    caps = {site: most_removable(values.numel(), density) for site, values in scores.items()}
    remove = round(share * sum(caps.values()))
    assert global_counts(caps, _stream(scores), remove) == _reference(scores, caps, remove)


def test_global_over_the_whole_range_of_float32():
    tiny, huge = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    scores = {
        "a": torch.tensor([0.0, -0.0, tiny / 8, 1.0, huge]),
        "b": torch.tensor([-1.0, tiny, 1e-20, 1.0000001, huge]),
    }
    caps = {"a": 5, "b": 5}
    for remove in range(11):
        counts = global_counts(caps, _stream(scores), remove)
        assert counts == _reference(scores, caps, remove)


def test_keys_keep_the_order_of_scores():
    scores = torch.cat([torch.tensor([-1.0, 0.0]), torch.rand(1000).sort().values])
    keys = score_keys(scores)
    assert bool((keys[1:] >= keys[:-1]).all())
    assert keys[0] == 0
    assert keys[1] == 1
    with pytest.raises(ValueError, match="finite"):
        score_keys(torch.tensor([float("nan")]))


def test_global_says_what_is_reachable():
    with pytest.raises(TargetUnreachable, match="at most 9 may go"):
        global_counts({"a": 9}, _stream({"a": torch.rand(10)}), 10)


def test_counts_mean_the_decimal_number_that_was_written():
    assert remove_count(0.1, 10) == 1
    assert remove_count(0.15, 10) == 2
    assert remove_count(0.5, 5) == 3
    assert most_removable(10, 0.05) == 9
    assert most_removable(100, 0.05) == 95
