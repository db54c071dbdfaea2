"""Each allocation against a slow and separate reading of its formula."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.allocation import allocations
from compression.allocation.distortion_dp import GRID, STEPS, best_combination, dense_curve
from compression.allocation.evolution import switched
from compression.allocation.globally import global_counts, score_keys
from compression.allocation.lamp import lamp_scores
from compression.densities import Bounds
from compression.parameters import configured
from tests.engine.plain_evidence import PlainEvidence, made

SQUARE = [[(20, 20), (10, 40)]] * 4


def _density(evidence: PlainEvidence, counts: dict[str, int]) -> dict[int, float]:
    """Density of each layer."""
    kept: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for site in evidence.sites:
        kept[site.layer] = kept.get(site.layer, 0) + evidence.units(site.name) - counts[site.name]
        sizes[site.layer] = sizes.get(site.layer, 0) + evidence.units(site.name)
    return {layer: kept[layer] / sizes[layer] for layer in kept}


def _near(found: dict[int, float], expected: dict[int, float], evidence: PlainEvidence) -> None:
    """Equal but for whole numbers: one unit of every site."""
    assert found.keys() == expected.keys()
    smallest = min(evidence.units(site.name) for site in evidence.sites)
    for layer, value in expected.items():
        assert found[layer] == pytest.approx(value, abs=1.01 / smallest), (found, expected)


def _owl_mapping(values: list[float], sparsity: float, reach: float) -> dict[int, float]:
    """Densities of OWL: importances scaled to [0, 2 reach], moved so that their mean is the density."""
    scaled = (np.array(values) - min(values)) * (1 / (max(values) - min(values)) * reach * 2)
    return dict(enumerate(scaled - scaled.mean() + (1 - sparsity)))


def _joint(evidence: PlainEvidence) -> list[np.ndarray]:
    """|W| * ||X|| of each layer in one row, in float64."""
    layers: list[list[np.ndarray]] = [[] for _ in {site.layer for site in evidence.sites}]
    for site in evidence.sites:
        weight = evidence.tensors[site.name].double().numpy()
        layers[site.layer].append((abs(weight) * evidence.norms[site.name].double().numpy()).ravel())
    return [np.concatenate(parts) for parts in layers]


# -- global and LAMP


def _takes_the_smallest(
    scores: dict[str, list[float]], bounds: dict[str, Bounds], remove: int
) -> dict[str, int]:
    """First what every site must lose; then one by one the smallest score of all sites that may still lose
    something, ties in the order of the sites.
    """
    counts = {site: bounds[site].least for site in scores}
    rest = sorted(
        (value, position, site)
        for position, (site, values) in enumerate(scores.items())
        for value in sorted(max(value, -1.0) for value in values)[counts[site] : bounds[site].most]
    )
    for _, _, site in rest[: remove - sum(counts.values())]:
        counts[site] += 1
    return counts


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


def _lists(scores: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    return {site: values.tolist() for site, values in scores.items()}


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    share=st.floats(0, 1),
    ends=st.sampled_from([(0.0, 1.0), (0.0, 0.95), (0.0, 0.5), (0.2, 0.9), (0.4, 0.6)]),
    seed=st.integers(0, 200),
    levels=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=200, deadline=None)
def test_global_is_the_exact_threshold(sizes, share, ends, seed, levels):
    scores = _scores(seed, sizes, levels)
    bounds = {
        site: Bounds(math.floor(ends[0] * values.numel()), math.ceil(ends[1] * values.numel()))
        for site, values in scores.items()
    }
    least, most = (sum(getattr(bound, end) for bound in bounds.values()) for end in ("least", "most"))
    remove = least + round(share * (most - least))
    found = global_counts(bounds, lambda: iter(scores.items()), remove)
    assert found == _takes_the_smallest(_lists(scores), bounds, remove)


def test_global_over_the_whole_range_of_float32():
    tiny, huge = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
    scores = {
        "a": torch.tensor([0.0, -0.0, tiny / 8, 1.0, huge]),
        "b": torch.tensor([-1.0, tiny, 1e-20, 1.0000001, huge]),
    }
    bounds = {"a": Bounds(0, 5), "b": Bounds(0, 5)}
    for remove in range(11):
        counts = global_counts(bounds, lambda: iter(scores.items()), remove)
        assert counts == _takes_the_smallest(_lists(scores), bounds, remove)


def test_keys_keep_the_order_of_scores():
    scores = torch.cat([torch.tensor([-1.0, 0.0]), torch.rand(1000).sort().values])
    keys = score_keys(scores)
    assert bool((keys[1:] >= keys[:-1]).all())
    assert keys[0] == 0
    assert keys[1] == 1
    with pytest.raises(ValueError, match="finite"):
        score_keys(torch.tensor([float("nan")]))


def test_lamp_sorts_everything_by_its_share_of_what_stays():
    evidence = made([[(6, 8), (3, 8)], [(5, 9)]], seed=5, minimum="0.1")
    shares = {}
    for site in evidence.sites:
        ordered = np.sort(abs(evidence.tensors[site.name].double().numpy()).ravel())
        squares = ordered**2
        shares[site.name] = [
            -1.0 if value == 0 else value / squares[place:].sum() for place, value in enumerate(squares)
        ]
    for remove in range(0, 105, 7):
        counts = allocations["lamp"].allocate(evidence, remove)
        assert counts == _takes_the_smallest(shares, dict(evidence.bounds), remove)


def test_lamp_scores_keep_the_order_and_end_at_one():
    scores = torch.tensor([[0.5, -1.0, 3.0], [0.0, 2.0, 1e-30]])
    found = lamp_scores(scores)
    expected = [0.25 / (9 + 4 + 0.25), -1.0, 1.0, 0.0, 4 / 13, 0.0]
    assert found.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert float(lamp_scores(torch.zeros(4)).sum()) == 0.0


# -- shapes


def test_erk_densities_are_in_proportion_where_not_clipped():
    evidence = made([[(100, 100), (100, 400)], [(300, 100), (30, 40)]])
    remove = 60_000
    counts = allocations["erk"].allocate(evidence, remove)
    assert sum(counts.values()) == remove
    raw = {site.name: (site.shape[0] + site.shape[1]) / site.size for site in evidence.sites}
    # The usual way to find the constant: what would be denser than full is full, again and again.
    full: set[str] = set()
    while True:
        open_sites = [site for site in evidence.sites if site.name not in full]
        kept = sum(site.size for site in evidence.sites) - remove
        kept -= sum(site.size for site in evidence.sites if site.name in full)
        constant = kept / sum(raw[site.name] * site.size for site in open_sites)
        over = {site.name for site in open_sites if constant * raw[site.name] > 1}
        if not over:
            break
        full |= over
    assert full
    for site in evidence.sites:
        density = 1.0 if site.name in full else constant * raw[site.name]
        assert abs(site.size - counts[site.name] - density * site.size) <= 1


# -- layers around a mean


def test_owl_by_hand():
    evidence = made(SQUARE, seed=2)
    evidence.tensors["layers.1.0.weight"][:5] *= 30
    evidence.tensors["layers.3.1.weight"][0] *= 40
    ratios = [float((row > 4 * row.mean()).mean()) for row in _joint(evidence)]
    assert len(set(ratios)) > 2
    entry = configured(allocations["owl"], {"owl_outlier": 4.0, "owl_reach": 0.12})
    counts = entry.allocate(evidence, 1760)
    _near(_density(evidence, counts), _owl_mapping(ratios, 1760 / 3200, 0.12), evidence)


def test_dlp_by_hand():
    evidence = made(SQUARE, seed=4)
    medians = [float(np.sort(row)[(row.size - 1) // 2]) for row in _joint(evidence)]
    importance = [1 - median / sum(medians) for median in medians]
    counts = configured(allocations["dlp"], {"dlp_reach": 0.2}).allocate(evidence, 2240)
    found = _density(evidence, counts)
    _near(found, _owl_mapping(importance, 0.7, 0.2), evidence)
    assert min(found, key=found.__getitem__) == medians.index(max(medians))


def test_block_influence_by_hand():
    evidence = made(SQUARE)
    evidence.influences = (0.9, 0.1, 0.2, 0.5)
    counts = configured(allocations["block-influence"], {"influence_reach": 0.15}).allocate(evidence, 1600)
    _near(_density(evidence, counts), _owl_mapping([0.9, 0.1, 0.2, 0.5], 0.5, 0.15), evidence)


def test_layers_without_sites_take_no_part():
    evidence = made(SQUARE)
    evidence.influences = (0.9, 0.1, 0.2, 0.5)
    evidence.sites = [site for site in evidence.sites if site.layer in (1, 3)]
    evidence.bounds = {site.name: evidence.bounds[site.name] for site in evidence.sites}
    for name in ("block-influence", "lim"):
        counts = allocations[name].allocate(evidence, 800)
        assert _density(evidence, counts) == pytest.approx({1: 0.4, 3: 0.6}, abs=0.003)


def test_lim_goes_by_the_order_alone():
    evidence = made(SQUARE)
    for influences in ((0.9, 0.1, 0.2, 0.5), (1.9, 0.0, 0.01, 0.02)):
        evidence.influences = influences
        counts = configured(allocations["lim"], {"rank_reach": 0.09}).allocate(evidence, 1600)
        _near(_density(evidence, counts), {0: 0.59, 3: 0.53, 2: 0.47, 1: 0.41}, evidence)


def test_zd_gives_most_to_layers_with_few_weights_far_above_their_mean():
    evidence = made(SQUARE, seed=6)
    evidence.tensors["layers.2.0.weight"].pow_(3)
    far = []
    for layer in range(4):
        count = 0
        for site in (site for site in evidence.sites if site.layer == layer):
            values = evidence.tensors[site.name].double().numpy()
            count += int((values > values.mean() + values.std()).sum())
        far.append(count)
    order = sorted(range(4), key=lambda layer: (far[layer], layer))
    counts = configured(allocations["zd"], {"rank_reach": 0.09}).allocate(evidence, 1600)
    expected = dict(zip(order, (0.59, 0.53, 0.47, 0.41), strict=True))
    _near(_density(evidence, counts), expected, evidence)


# -- the loss


def test_ecoflap_keeps_a_floor_and_shares_the_rest_by_slopes():
    evidence = made(SQUARE)
    slopes = {0: [3.0, -4.0], 1: [1.0, 1.0], 2: [0.0, 2.0], 3: [5.0, 0.1]}
    asked = []

    def slope(layer: int, direction: int, sequences: int) -> float:
        asked.append((layer, direction, sequences))
        return slopes[layer][direction]

    evidence.slopes = slope
    chosen = {"ecoflap_maximum": 0.2, "ecoflap_directions": 2, "ecoflap_sequences": 5}
    counts = configured(allocations["ecoflap"], chosen).allocate(evidence, 1920)
    assert asked == [(layer, direction, 5) for layer in range(4) for direction in range(2)]
    importance = {layer: math.sqrt((a * a + b * b) / 2) for layer, (a, b) in slopes.items()}
    floor = 0.4 - 0.2
    constant = (0.4 - floor) * 4 / sum(importance.values())
    expected = {layer: floor + constant * value for layer, value in importance.items()}
    assert max(expected.values()) < 1
    _near(_density(evidence, counts), expected, evidence)


def test_ecoflap_without_any_slope_is_even():
    evidence = made(SQUARE)
    evidence.slopes = lambda layer, direction, sequences: 0.0
    counts = allocations["ecoflap"].allocate(evidence, 1600)
    assert set(counts.values()) == {200}


# -- divergences


def test_curves_rise_and_are_linear_between_the_points():
    curve = dense_curve((0.0, 0.5, 0.8), (0.0, 2.0, 1.0))
    assert len(curve) == STEPS + 1
    assert curve[25] == pytest.approx(1.0)
    assert curve[50:] == pytest.approx([2.0] * 51)
    steep = dense_curve((0.0, 0.5, 0.8), (0.0, 1.0, 4.0))
    assert steep[65] == pytest.approx(2.5)
    assert steep[100] == pytest.approx(6.0)
    measured = dense_curve(GRID, [level**3 for level in GRID])
    assert [measured[round(level * STEPS)] for level in GRID] == pytest.approx([level**3 for level in GRID])


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
    bounded=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_best_combination_is_that_of_trying_all(sizes, seed, share, bounded):
    dice = np.random.default_rng(seed)
    curves = [np.sort(dice.random(STEPS + 1)).tolist() for _ in sizes]
    limits = [(size // 4, size - size // 4) if bounded else (0, size) for size in sizes]
    most = sum(limit[1] for limit in limits)
    goal = round(share * most)
    chosen = best_combination(curves, sizes, limits, goal)
    removed = [size * step // STEPS for size, step in zip(sizes, chosen, strict=True)]
    assert all(low <= gone <= high for gone, (low, high) in zip(removed, limits, strict=True))
    assert sum(removed) >= goal
    # Costs rise, so that of all steps with one count the first is enough.
    options = []
    for curve, size, (low, high) in zip(curves, sizes, limits, strict=True):
        first: dict[int, float] = {}
        for step in range(STEPS + 1):
            if low <= size * step // STEPS <= high:
                first.setdefault(size * step // STEPS, curve[step])
        options.append(list(first.items()))
    best = min(
        sum(cost for _, cost in combination)
        for combination in itertools.product(*options)
        if sum(count for count, _ in combination) >= goal
    )
    assert sum(curve[step] for curve, step in zip(curves, chosen, strict=True)) == pytest.approx(best)


def test_a_large_programme_is_as_good_as_its_resolution():
    sizes = [4_000_000, 6_000_000, 5_000_000]
    curves = [[weight * (step / STEPS) ** 2 for step in range(STEPS + 1)] for weight in (1.0, 3.0, 2.0)]
    chosen = best_combination(curves, sizes, [(0, size) for size in sizes], 7_500_000)
    removed = sum(size * step / STEPS for size, step in zip(sizes, chosen, strict=True))
    assert 7_500_000 <= removed <= 7_500_000 * 1.01 + max(sizes) / STEPS
    # Of the continuous problem: sparsities in proportion to size / weight.
    shares = [size / weight for size, weight in zip(sizes, (1.0, 3.0, 2.0), strict=True)]
    factor = 7_500_000 / sum(size * share for size, share in zip(sizes, shares, strict=True))
    least = sum(w * (factor * s) ** 2 for w, s in zip((1.0, 3.0, 2.0), shares, strict=True))
    assert sum(curve[step] for curve, step in zip(curves, chosen, strict=True)) <= 1.03 * least


def test_distortion_curves_give_the_optimum_of_what_was_measured():
    evidence = made([[(20, 20)], [(20, 20)], [(20, 20)]])
    asked = []

    def cost(sparsities, sequences):
        asked.append((dict(sparsities), sequences))
        ((layer, value),) = sparsities.items()
        return (1, 4, 16)[layer] * value

    evidence.cost = cost
    counts = configured(allocations["distortion-dp"], {"distortion_sequences": 7}).allocate(evidence, 600)
    # Linear costs: the cheapest layer goes wholly, then half of the next one.
    assert list(counts.values()) == [400, 200, 0]
    assert asked == [({layer: level}, 7) for layer in range(3) for level in GRID[1:]]
    assert evidence.heard == [(1, 3), (2, 3), (3, 3)]


def test_evolution_finds_the_optimum_of_a_separable_convex_cost():
    evidence = made([[(20, 20)]] * 4)
    weights = (1.0, 2.0, 4.0, 8.0)
    asked = []

    def cost(sparsities, sequences):
        asked.append(sequences)
        assert sum(sparsities.values()) == pytest.approx(2.0)
        return sum(weights[layer] * value**2 for layer, value in sparsities.items())

    evidence.cost = cost
    chosen = {"evolution_generations": 25, "evolution_sequences": 16, "evolution_levels": 10}
    counts = configured(allocations["evolution"], chosen).allocate(evidence, 800)
    # In twentieths; no layer goes wholly.
    best = min(
        (combination for combination in itertools.product(range(20), repeat=4) if sum(combination) == 40),
        key=lambda combination: sum(w * value**2 for w, value in zip(weights, combination, strict=True)),
    )
    assert list(counts.values()) == [20 * value for value in best]
    assert set(asked) == {2, 16}


def test_switches_keep_the_total_and_the_levels_in_range():
    import random

    dice = random.Random(1)
    levels, sizes = (0, 0, 0, 0, 0), [8, 8, 5, 5, 3]
    seen = set()
    for _ in range(300):
        levels = switched(levels, sizes, -2, 1, dice)
        seen.add(levels)
        assert levels[0] + levels[1] == 0
        assert levels[2] + levels[3] == 0
        assert levels[4] == 0
        assert all(-2 <= level <= 1 for level in levels)
    assert len(seen) == 9


def test_evolution_leaves_a_lone_layer_at_the_target():
    evidence = made([[(20, 20), (4, 8)]])
    counts = allocations["evolution"].allocate(evidence, 216)
    assert list(counts.values()) == [200, 16]
