"""Every allocation: exact sums within bounds; the arithmetic that they share."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.allocation import allocations
from compression.allocation.base import (
    EVIDENCE,
    Bounds,
    around,
    fitted,
    rounded,
    scaled,
    shifted,
)
from compression.anatomy.budget import remove_count
from compression.densities import least_removable, most_removable, site_bounds
from compression.errors import TargetUnreachable
from compression.parameters import configured
from tests.engine.plain_evidence import bounds_of, made

# A search of few rounds is as exact as one of many.
SHORT = {"evolution_generations": 2, "evolution_offspring": 4}
BOUNDED = [name for name in allocations.names() if name != "uniform"]
DENSITIES = [("0", "1"), ("0.05", "1"), ("0.3", "0.8"), ("0.5", "0.5")]

shapes = st.lists(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=3), min_size=1, max_size=4
)


def _entry(name: str):
    return configured(allocations[name], SHORT)


@pytest.mark.parametrize("name", allocations.names())
@given(shapes=shapes, share=st.floats(0, 1), seed=st.integers(0, 50), densities=st.sampled_from(DENSITIES))
@settings(max_examples=40, deadline=None)
def test_sums_are_exact_and_counts_within_bounds(name, shapes, share, seed, densities):
    minimum, maximum = ("0", "1") if name == "uniform" else densities
    evidence = made(shapes, seed=seed, minimum=minimum, maximum=maximum, levels=None if seed % 2 else 2)
    least, most = (
        sum(getattr(bound, end) for bound in evidence.bounds.values()) for end in ("least", "most")
    )
    remove = least + round(share * (most - least))
    counts = _entry(name).allocate(evidence, remove)
    assert list(counts) == [site.name for site in evidence.sites]
    assert sum(counts.values()) == remove
    for site, count in counts.items():
        assert type(count) is int
        assert evidence.bounds[site].least <= count <= evidence.bounds[site].most
    assert _entry(name).allocate(evidence, remove) == counts


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize(("minimum", "maximum", "beyond"), [("0.3", "1", 1), ("0", "0.8", -1)])
def test_what_the_bounds_forbid_is_refused(name, minimum, maximum, beyond):
    evidence = made([[(5, 7), (4, 4)], [(8, 8)]], minimum=minimum, maximum=maximum)
    edge = sum(bound.most if beyond > 0 else bound.least for bound in evidence.bounds.values())
    assert sum(_entry(name).allocate(evidence, edge).values()) == edge
    option = "minimum_density" if beyond > 0 else "maximum_density"
    with pytest.raises(TargetUnreachable, match=rf"options\.{option} at (most|least) {edge} (may|must) go"):
        _entry(name).allocate(evidence, edge + beyond)


@pytest.mark.parametrize("name", allocations.names())
def test_every_allocation_says_what_it_is(name: str):
    entry = allocations[name]
    assert entry.name == name
    assert entry.summary.endswith(".")
    assert entry.paper is None or len(entry.paper) == 10
    assert entry.needs <= {*EVIDENCE, "slope"}


@pytest.mark.parametrize("name", allocations.names())
def test_only_what_is_declared_is_asked_for(name: str):
    class Strict:
        """Evidence that answers only to what an allocation says it needs."""

        def __init__(self, allowed):
            self._evidence, self._allowed = made([[(6, 8), (4, 8)], [(6, 8), (4, 8)]]), allowed

        def __getattr__(self, asked):
            assert asked in self._allowed, asked
            return getattr(self._evidence, asked)

    always = {"sites", "bounds", "units", "progress"}
    counts = _entry(name).allocate(Strict(always | allocations[name].needs), 70)
    assert sum(counts.values()) == 70


@pytest.mark.parametrize("name", allocations.names())
def test_ten_times_larger_weights_change_nothing(name: str):
    evidence = made([[(6, 8), (4, 8)], [(6, 8), (4, 8)], [(6, 8), (4, 8)]], seed=3)
    before = _entry(name).allocate(evidence, 100)
    evidence.tensors = {site: weight * 16 for site, weight in evidence.tensors.items()}
    assert _entry(name).allocate(evidence, 100) == before


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=8), sparsity=st.floats(0.01, 0.99))
@settings(max_examples=100, deadline=None)
def test_uniform_is_within_one_weight_everywhere(sizes, sparsity):
    evidence = made([[(1, size)] for size in sizes])
    remove = remove_count(sparsity, sum(sizes))
    counts = allocations["uniform"].allocate(evidence, remove)
    for site, size in zip(evidence.sites, sizes, strict=True):
        assert abs(counts[site.name] - remove * size / sum(sizes)) <= 1
        assert abs(counts[site.name] - sparsity * size) <= 1.5


# -- what they share


@given(size=st.integers(1, 500), hundredths=st.integers(0, 100))
@settings(max_examples=100, deadline=None)
def test_bounds_are_those_of_the_decimal_number_that_was_written(size, hundredths):
    density, exact = hundredths / 100, Fraction(hundredths, 100)
    assert most_removable(size, density) == bounds_of(size, minimum=str(exact)).most
    assert least_removable(size, density) == bounds_of(size, maximum=str(exact)).least
    both = site_bounds(size, density, density)
    assert both == bounds_of(size, str(exact), str(exact))
    assert both.least == both.most


def test_counts_mean_the_decimal_number_that_was_written():
    assert remove_count(0.1, 10) == 1
    assert remove_count(0.15, 10) == 2
    assert remove_count(0.5, 5) == 3
    assert most_removable(10, 0.05) == 9
    assert most_removable(100, 0.05) == 95
    assert least_removable(10, 0.95) == 1
    assert least_removable(100, 0.95) == 5


def test_shifted_keeps_differences_and_the_others_share_what_a_bound_cuts_off():
    evidence = made([[(10, 10)], [(10, 10)], [(10, 10)]])
    names = [site.name for site in evidence.sites]
    wanted = dict(zip(names, (0.2, 0.5, 0.6), strict=True))
    assert list(shifted(evidence, wanted, 160).values()) == [30, 60, 70]
    assert list(shifted(evidence, wanted, 270).values()) == [70, 100, 100]
    assert list(shifted(evidence, wanted, 20).values()) == [0, 5, 15]
    evidence.bounds = {**evidence.bounds, names[2]: Bounds(0, 40)}
    assert list(shifted(evidence, wanted, 130).values()) == [30, 60, 40]


def test_scaled_spends_the_budget_by_importance_above_a_floor():
    evidence = made([[(10, 10)], [(10, 10)], [(10, 10)]])
    importance = dict(zip((site.name for site in evidence.sites), (1.0, 2.0, 5.0), strict=True))
    assert list(scaled(evidence, importance, 220).values()) == [90, 80, 50]
    floored = scaled(evidence, importance, 190, floor=0.1)
    assert list(floored.values()) == [80, 70, 40]


@pytest.mark.parametrize("nothing", [0.0, 1e-300])
def test_a_site_without_importance_goes_first_and_is_filled_last(nothing):
    evidence = made([[(10, 10)], [(10, 10)], [(10, 10)]])
    importance = dict(zip((site.name for site in evidence.sites), (1.0, nothing, 1.0), strict=True))
    assert list(scaled(evidence, importance, 180).values()) == [40, 100, 40]
    assert list(scaled(evidence, importance, 60).values()) == [0, 60, 0]


def test_a_large_model_is_fitted_at_once():
    class Large:
        def __init__(self):
            self.sites = made([[(1, 1)], [(1, 1)], [(1, 1)]]).sites
            self.bounds = {site.name: Bounds(0, 10**10) for site in self.sites}

        def units(self, site):
            return 10**10

    names = [site.name for site in Large().sites]
    for importance in ((1.0, 0.0, 1.0), (1.0, 1e-30, 1e-3), (0.0, 0.0, 0.0)):
        for remove in (3, 10**9 + 7, 2 * 10**10 + 11, 3 * 10**10 - 1):
            counts = scaled(Large(), dict(zip(names, importance, strict=True)), remove)
            assert sum(counts.values()) == remove
    counts = shifted(Large(), dict(zip(names, (0.3, 0.5, 0.7), strict=True)), 15 * 10**9 + 1)
    assert [round(count / 10**10, 6) for count in counts.values()] == [0.3, 0.5, 0.7]


def test_whole_numbers_by_the_largest_remainder():
    bounds = {name: Bounds(0, 9) for name in "abc"}
    assert rounded({"a": 1.4, "b": 2.8, "c": 3.8}, bounds, 8) == {"a": 1, "b": 3, "c": 4}
    assert rounded({"a": 1.5, "b": 2.5, "c": 4.0}, bounds, 8) == {"a": 2, "b": 2, "c": 4}
    assert rounded({"a": 3.0, "b": 3.0, "c": 3.0}, {**bounds, "c": Bounds(3, 9)}, 7)["c"] == 3
    with pytest.raises(TargetUnreachable, match="within the bounds"):
        rounded({"a": 1.0, "b": 1.0, "c": 1.0}, bounds, 28)


def test_a_fitted_curve_is_read_where_the_total_is_right():
    evidence = made([[(10, 10)], [(20, 10)]])
    first, second = (site.name for site in evidence.sites)
    counts = fitted(evidence, lambda step: {first: step, second: step * step}, 125)
    # 100 t + 200 t^2 = 125
    root = (-100 + (100**2 + 4 * 200 * 125) ** 0.5) / 400
    assert abs(counts[first] - 100 * root) <= 1
    assert sum(counts.values()) == 125


def test_around_spans_twice_the_reach_about_the_target():
    found = around({0: 3.0, 1: 1.0, 2: 2.0}, 0.6, 0.1)
    assert found == pytest.approx({0: 0.5, 1: 0.7, 2: 0.6})
    uneven = around({0: 0.0, 1: 0.0, 2: 9.0}, 0.5, 0.06)
    assert uneven == pytest.approx({0: 0.54, 1: 0.54, 2: 0.42})
    assert around({0: 2.0, 1: 2.0}, 0.5, 0.1) == {0: 0.5, 1: 0.5}


def test_evidence_of_the_tests_is_what_it_says():
    evidence = made([[(3, 4)], [(2, 5)]], seed=1)
    scores = dict(evidence.scores())
    for site in evidence.sites:
        weight = evidence.tensors[site.name]
        assert torch.equal(scores[site.name] < 0, weight == 0)
        assert evidence.units(site.name) == site.size
