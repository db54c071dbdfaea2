"""The PQ index against its formula, its bound against what can really go, and both in whole jobs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.evaluation import compressibility
from compression.evaluation.compressibility import index_and_bound, spread

PAIRS = [(1.0, 2.0), (0.5, 1.0), (0.5, 2.0), (0.2, 1.0), (1.0, 1.2)]
VALUES = st.lists(
    st.floats(-1e3, 1e3).filter(lambda value: value == 0 or abs(value) > 1e-6), min_size=1, max_size=40
)


def _index(values: list[float], p: float, q: float) -> float:
    """1 - (mean of |w|^p)^(1/p) / (mean of |w|^q)^(1/q), which is the definition with the d inside."""
    sizes = np.abs(np.array(values, dtype=np.float64))
    return float(1 - np.mean(sizes**p) ** (1 / p) / np.mean(sizes**q) ** (1 / q))


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_equal_magnitudes_give_0_and_a_single_one_nearly_1(p: float, q: float) -> None:
    alike = torch.full((30, 40), 0.37)
    alike[::2] *= -1
    assert spread(alike, p=p, q=q).index == pytest.approx(0.0, abs=1e-12)
    assert spread(alike, p=p, q=q).removable == 0
    single = torch.zeros(30, 40)
    single[3, 5] = -2.0
    found = spread(single, p=p, q=q)
    assert found.index == pytest.approx(1 - 1200 ** (1 / q - 1 / p), rel=1e-12)
    assert found.removable == 1199
    assert spread(single, kept_only=True, p=p, q=q).to_json() == {"count": 1, "index": 0.0, "removable": 0}


@settings(max_examples=200, deadline=None)
@given(VALUES, st.sampled_from(PAIRS))
def test_the_index_is_that_of_the_formula(values: list[float], pair: tuple[float, float]) -> None:
    found = spread(torch.tensor([values], dtype=torch.float64), p=pair[0], q=pair[1])
    assert found.count == len(values)
    if not any(values):
        assert (found.index, found.removable) == (None, 0)
        return
    assert found.index == pytest.approx(_index(values, *pair), abs=1e-9)
    assert 0 <= found.index <= 1
    kept = [value for value in values if value]
    left = spread(torch.tensor([values], dtype=torch.float64), kept_only=True, p=pair[0], q=pair[1])
    assert left.count == len(kept)
    assert left.index == pytest.approx(_index(kept, *pair), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(VALUES.filter(any), st.sampled_from(PAIRS))
def test_no_number_of_largest_elements_breaks_the_bound(
    values: list[float], pair: tuple[float, float]
) -> None:
    """r >= d (1 + eta)^(-q/(q-p)) (1 - I)^(pq/(q-p)) for every r, eta being what the others have of it."""
    p, q = pair
    powers = sorted((abs(value) ** p for value in values), reverse=True)
    index, removable = index_and_bound(
        len(values), math.fsum(powers), math.fsum(abs(value) ** q for value in values), p, q
    )
    for stay in range(1, len(values) + 1):
        eta = math.fsum(powers[stay:]) / math.fsum(powers[:stay])
        bound = len(values) * (1 + eta) ** (-q / (q - p)) * (1 - index) ** (p * q / (q - p))
        assert stay >= bound * (1 - 1e-9)
    # With eta = 0 exactly the zeros may go, so no more than those may be called removable without loss.
    assert 0 <= removable < len(values)
    assert removable >= sum(value == 0 for value in values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [1e-30, 1.0, 1e30])
def test_scale_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, factor: float
) -> None:
    weight = torch.randn(37, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = spread(weight)
    assert expected.index == pytest.approx(_index(weight.double().flatten().tolist(), 1.0, 2.0), rel=1e-9)
    if dtype != torch.float16:
        scaled = spread(weight * factor)
        assert scaled.index == pytest.approx(expected.index, rel=1e-2 if dtype == torch.bfloat16 else 1e-6)
    monkeypatch.setattr(compressibility, "CHUNK", 40)
    assert spread(weight).index == pytest.approx(expected.index, rel=1e-12)
    assert spread(weight.T).index == pytest.approx(expected.index, rel=1e-12)
    assert spread(weight).removable == expected.removable


@pytest.mark.parametrize(("p", "q"), [(0.0, 2.0), (1.0, 1.0), (2.0, 3.0), (0.5, 0.9), (2.0, 1.0)])
def test_other_norms_measure_no_sparsity(p: float, q: float) -> None:
    with pytest.raises(ValueError, match="0 < p <= 1 <= q"):
        spread(torch.ones(3, 3), p=p, q=q)


def test_a_normal_weight_has_the_index_of_the_normal_distribution() -> None:
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    found = spread(weight)
    assert found.index == pytest.approx(1 - math.sqrt(2 / math.pi), abs=1e-3)
    assert found.removable == pytest.approx(1e6 * (1 - 2 / math.pi), rel=3e-3)
