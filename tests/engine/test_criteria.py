"""Every criterion against a reference in float64, and the rules that hold for all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compression.criteria import criteria, layer_criteria
from compression.criteria.base import ScoresNotFinite, SiteStatistics, check_scores


def _statistics(columns: int, seed: int = 1) -> SiteStatistics:
    norms = torch.rand(columns, generator=torch.Generator().manual_seed(seed)) + 0.1
    return SiteStatistics(column_norms=norms, tokens=100)


def _weight(rows: int = 6, columns: int = 9, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    weight[1, 2] = 0.0
    return weight.to(dtype)


def _score(name: str, weight: torch.Tensor, seed: int = 7) -> torch.Tensor:
    criterion = criteria[name]
    statistics = _statistics(weight.shape[1]) if "activations" in criterion.needs else None
    return criterion.score(weight, statistics, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", criteria.names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_are_float32_of_the_weights_shape_finite_and_not_negative(name: str, dtype: torch.dtype):
    weight = _weight(dtype=dtype)
    scores = _score(name, weight)
    assert scores.dtype == torch.float32
    assert scores.shape == weight.shape
    assert bool(torch.isfinite(scores).all())
    assert bool((scores >= 0).all())
    check_scores(scores, "site")


@pytest.mark.parametrize("name", criteria.names())
def test_scores_are_pure(name: str):
    weight = _weight()
    before = weight.clone()
    first, second = _score(name, weight), _score(name, weight)
    assert torch.equal(first, second)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("name", criteria.names())
def test_every_criterion_says_what_it_is(name: str):
    criterion = criteria[name]
    assert criterion.name == name
    assert criterion.summary.endswith(".")
    assert criterion.needs <= {"activations"}


def test_magnitude_is_the_absolute_value():
    weight = _weight()
    expected = np.abs(weight.numpy().astype(np.float64))
    assert np.array_equal(_score("magnitude", weight).numpy().astype(np.float64), expected)


def test_wanda_is_weight_times_input_norm():
    weight = _weight(8, 12)
    inputs = torch.randn(50, 12, generator=torch.Generator().manual_seed(3))
    norms = inputs.double().square().sum(0).sqrt()
    statistics = SiteStatistics(norms.float(), 50)
    scores = criteria["wanda"].score(weight, statistics, torch.Generator())
    expected = np.empty((8, 12))
    for row in range(8):
        for column in range(12):
            norm = math.sqrt(sum(float(value) ** 2 for value in inputs[:, column]))
            expected[row, column] = abs(float(weight[row, column])) * norm
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6)


def test_wanda_needs_statistics():
    with pytest.raises(ValueError, match="norms"):
        criteria["wanda"].score(_weight(), None, torch.Generator())


def test_random_depends_on_the_seed_alone():
    first, other = _score("random", _weight(), seed=1), _score("random", _weight(), seed=2)
    assert not torch.equal(first, other)
    assert torch.equal(first, _score("random", _weight() * 3, seed=1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_bad_score_is_named(bad: float):
    scores = torch.ones(2, 3)
    scores[1, 2] = bad
    with pytest.raises(ScoresNotFinite, match=r"model\.x\[1, 2\]"):
        check_scores(scores, "model.x")


@pytest.mark.parametrize("name", layer_criteria.names())
def test_layer_criteria_are_zero_for_no_change_and_grow_with_it(name: str):
    criterion = layer_criteria[name]
    before = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    near, far = criterion.distance(before, before + 0.1 * noise), criterion.distance(before, before + noise)
    assert criterion.distance(before, before) == pytest.approx(0.0, abs=1e-4)
    assert 0 < near < far


def test_angular_against_a_loop_in_float64():
    before = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))
    after = torch.randn(11, 7, generator=torch.Generator().manual_seed(1))
    angles = []
    for x, y in zip(before.tolist(), after.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        norms = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
        angles.append(math.acos(dot / norms) / math.pi)
    assert layer_criteria["angular"].distance(before, after) == pytest.approx(sum(angles) / 11, rel=1e-12)
    assert layer_criteria["angular"].distance(before, -before) == pytest.approx(1.0)
    assert layer_criteria["angular"].distance(before, torch.zeros_like(before)) == pytest.approx(0.5)
