"""Every criterion against a reference in float64, and the rules that hold for all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compression.criteria import criteria
from compression.criteria.base import NEEDS, ScoresNotFinite, SiteStatistics, check_scores
from compression.criteria.layers.angular import angle
from compression.parameters import configured

TOKENS, SEQUENCES = 50, 7
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _inputs(columns: int) -> torch.Tensor:
    inputs = torch.randn(TOKENS, columns, generator=torch.Generator().manual_seed(3)) + 0.2
    inputs[:, columns // 2] = 0.0
    return inputs


def _gradients(rows: int, columns: int, seed: int = 4) -> torch.Tensor:
    """[sequences, rows, columns]"""
    return torch.randn(SEQUENCES, rows, columns, generator=torch.Generator().manual_seed(seed)) * 1e-3


def _statistics(rows: int, columns: int, needs: frozenset[str] = frozenset(NEEDS)) -> SiteStatistics:
    """Of random inputs and gradients, from sums in float64; only what is asked for."""
    inputs = _inputs(columns).double()

    def kinds(use: str, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
        gradients = gradients.double()
        found = {
            "mean": gradients.mean(0),
            "absolute": gradients.abs().mean(0),
            "square": gradients.square().mean(0),
        }
        return {kind: value.float() for kind, value in found.items() if f"{use}gradient.{kind}" in needs}

    return SiteStatistics(
        inputs.square().sum(0).sqrt().float(),
        TOKENS,
        inputs.mean(0).float() if "means" in needs else None,
        (inputs.T @ inputs).float() if "hessian" in needs else None,
        kinds("", _gradients(rows, columns)),
        kinds("domain.", _gradients(rows, columns, seed=5)),
        inputs.abs().mean(0).float() if "magnitudes" in needs else None,
    )


def _weight(rows: int = 6, columns: int = 9, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    weight[1, 2] = 0.0
    weight[:, 4] = 0.0
    weight[3] = 0.0
    return weight.to(dtype)


def _score(name: str, weight: torch.Tensor, seed: int = 7, **options) -> torch.Tensor:
    criterion = configured(criteria[name], options)
    statistics = _statistics(*weight.shape, criterion.needs) if criterion.needs else None
    return criterion.score(weight, statistics, torch.Generator().manual_seed(seed))


# -- every criterion


@pytest.mark.parametrize("name", criteria.names())
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_float32_of_the_weights_shape_finite_and_not_negative(name: str, dtype: torch.dtype):
    weight = _weight(dtype=dtype)
    scores = _score(name, weight)
    assert scores.dtype == torch.float32
    assert scores.shape == weight.shape
    assert bool(torch.isfinite(scores).all())
    assert bool((scores >= 0).all())
    assert check_scores(scores, "site") is scores


@pytest.mark.parametrize("name", criteria.names())
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_those_of_the_same_values_in_float32(name: str, dtype: torch.dtype):
    weight = _weight(dtype=dtype)
    assert torch.equal(_score(name, weight), _score(name, weight.float()))


@pytest.mark.parametrize("name", criteria.names())
def test_scores_are_pure(name: str):
    weight = _weight()
    statistics = _statistics(*weight.shape)
    before = [weight.clone(), *(statistics.need(need).clone() for need in NEEDS)]
    first, second = (
        criteria[name].score(weight, statistics, torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first, second)
    after = [weight, *(statistics.need(need) for need in NEEDS)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert first.data_ptr() not in {value.data_ptr() for value in after}


@pytest.mark.parametrize("name", criteria.names())
@pytest.mark.parametrize("extreme", ["zeros", "silent", "tiny", "large", "one"])
def test_scores_of_extreme_weights_are_finite(name: str, extreme: str):
    weight, statistics = _weight(), _statistics(6, 9)
    if extreme == "zeros":
        weight = torch.zeros_like(weight)
    elif extreme == "silent":
        quiet = {kind: torch.zeros(6, 9) for kind in statistics.gradients}
        nothing = torch.zeros(9)
        statistics = SiteStatistics(nothing, TOKENS, nothing, torch.zeros(9, 9), quiet, quiet)
    elif extreme == "one":
        weight, statistics = torch.full((1, 1), 0.5), _statistics(1, 1)
    else:
        weight = weight * (1e-40 if extreme == "tiny" else 1e15)
    check_scores(criteria[name].score(weight, statistics, torch.Generator().manual_seed(7)), extreme)


@pytest.mark.parametrize("name", criteria.names())
def test_every_criterion_says_what_it_is(name: str):
    criterion = criteria[name]
    assert criterion.name == name
    assert criterion.summary.endswith(".")
    assert criterion.needs <= set(NEEDS)


@pytest.mark.parametrize("name", [entry.name for entry in criteria if entry.needs])
def test_what_is_needed_and_missing_is_an_error(name: str):
    with pytest.raises(ValueError):
        criteria[name].score(_weight(), None, torch.Generator())
    gradients = {need for need in criteria[name].needs if "gradient." in need}
    for missing in gradients:
        poor = _statistics(6, 9, frozenset({"activations"}) | gradients - {missing})
        with pytest.raises(ValueError, match=f"{missing!r} was not measured"):
            criteria[name].score(_weight(), poor, torch.Generator())


def test_statistics_by_their_names():
    statistics = _statistics(3, 5)
    shapes = {need: tuple(statistics.need(need).shape) for need in NEEDS}
    assert shapes == {
        "activations": (5,), "means": (5,), "hessian": (5, 5), "magnitudes": (5,),
        "gradient.mean": (3, 5), "gradient.absolute": (3, 5), "gradient.square": (3, 5),
        "domain.gradient.mean": (3, 5), "domain.gradient.square": (3, 5),
    }  # fmt: skip
    bare = SiteStatistics(torch.ones(5), 1)
    assert torch.equal(bare.need("activations"), torch.ones(5))
    for need in NEEDS[1:]:
        with pytest.raises(ValueError, match="was not measured"):
            bare.need(need)
    given = bare.with_gradients({"mean": torch.ones(3, 5)})
    assert torch.equal(given.need("gradient.mean"), torch.ones(3, 5))
    assert bare.with_gradients({}) is bare
    both = bare.with_gradients({"mean": torch.ones(3, 5)}, {"mean": torch.zeros(3, 5)})
    assert torch.equal(both.need("gradient.mean"), torch.ones(3, 5))
    assert torch.equal(both.need("domain.gradient.mean"), torch.zeros(3, 5))


# -- each against its formula, one weight after another


def _reference(name: str, weight: torch.Tensor, **options: float) -> np.ndarray:
    w = np.abs(weight.double().numpy())
    x = _inputs(w.shape[1]).double().numpy()
    g = _gradients(*w.shape).double().numpy()
    signed = weight.double().numpy()
    norms = [math.sqrt(sum(value * value for value in x[:, j])) for j in range(w.shape[1])]
    rms = np.sqrt(
        np.array([[np.mean(g[:, i, j] ** 2) for j in range(w.shape[1])] for i in range(w.shape[0])])
    )
    result = np.empty(w.shape)
    for i, j in np.ndindex(*w.shape):
        if name == "magnitude":
            result[i, j] = w[i, j]
        elif name == "wanda":
            result[i, j] = w[i, j] * norms[j]
        elif name == "ria":
            row, column = sum(w[i, :]), sum(w[:, j])
            relative = (w[i, j] / row if row else 0) + (w[i, j] / column if column else 0)
            result[i, j] = relative * norms[j] ** options["ria_power"]
        elif name == "gblm":
            scale = np.mean(norms) / np.mean(rms)
            result[i, j] = w[i, j] * (norms[j] + options["gblm_alpha"] * scale * rms[i, j])
        elif name == "gradient":
            result[i, j] = sum(abs(signed[i, j] * g[s, i, j]) for s in range(SEQUENCES)) / SEQUENCES
        elif name == "fisher":
            result[i, j] = sum((signed[i, j] * g[s, i, j]) ** 2 for s in range(SEQUENCES)) / SEQUENCES / 2
        elif name == "d-pruner":
            first = options.get("d_pruner_first_order", False)
            general, domain = (
                first * sum(g[s, i, j] for s in range(SEQUENCES)) / SEQUENCES * signed[i, j]
                - sum(g[s, i, j] ** 2 for s in range(SEQUENCES)) / SEQUENCES * signed[i, j] ** 2 / 2
                for g in (g, _gradients(*w.shape, seed=5).double().numpy())
            )
            relative = options["d_pruner_lambda"] / np.mean(signed**2)
            result[i, j] = abs(domain - relative * abs(general) * signed[i, j] ** 2)
        elif name == "movement":
            result[i, j] = -sum(signed[i, j] * g[s, i, j] for s in range(SEQUENCES)) / SEQUENCES
    return result - result.min() if name == "movement" else result


FORMULAS = [
    ("magnitude", {}),
    ("wanda", {}),
    ("ria", {"ria_power": 0.5}),
    ("ria", {"ria_power": 0.0}),
    ("ria", {"ria_power": 2.0}),
    ("gblm", {"gblm_alpha": 0.5}),
    ("gblm", {"gblm_alpha": 0.0}),
    ("gblm", {"gblm_alpha": 100.0}),
    ("gradient", {}),
    ("fisher", {}),
    ("movement", {}),
    ("d-pruner", {"d_pruner_lambda": 0.0}),
    ("d-pruner", {"d_pruner_lambda": 1.0}),
    ("d-pruner", {"d_pruner_lambda": 30.0}),
    ("d-pruner", {"d_pruner_lambda": 1.0, "d_pruner_first_order": True}),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "options"), FORMULAS)
def test_scores_are_those_of_the_formula(name, options, dtype):
    weight = _weight(8, 12, dtype)
    expected = _reference(name, weight, **options)
    found = _score(name, weight, **options).double().numpy()
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6 * expected.max())
    assert (found > 0).any()


def test_every_criterion_but_chance_has_a_formula_here():
    assert {name for name, _ in FORMULAS} == set(criteria.names()) - {"random"}


def test_magnitude_is_exact():
    weight = _weight()
    assert np.array_equal(_score("magnitude", weight).numpy(), np.abs(weight.numpy()))


def test_without_any_gradient_gblm_is_wanda():
    weight, norms = _weight(), _statistics(6, 9).column_norms
    silent = SiteStatistics(norms, TOKENS, gradients={"square": torch.zeros(6, 9)})
    assert torch.equal(
        criteria["gblm"].score(weight, silent, torch.Generator()),
        criteria["wanda"].score(weight, silent, torch.Generator()),
    )


def test_gblm_does_not_depend_on_the_scale_of_the_loss():
    weight, statistics = _weight(), _statistics(6, 9)
    louder = statistics.with_gradients({"square": statistics.need("gradient.square") * 2.0**20})
    first, second = (
        criteria["gblm"].score(weight, given, torch.Generator()) for given in (statistics, louder)
    )
    torch.testing.assert_close(first, second, rtol=1e-6, atol=0)


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


# -- whole layers


def test_angular_against_a_loop_in_float64():
    before = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))
    after = torch.randn(11, 7, generator=torch.Generator().manual_seed(1))
    angles = []
    for x, y in zip(before.tolist(), after.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        norms = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
        angles.append(math.acos(dot / norms) / math.pi)
    assert angle(before, after) == pytest.approx(sum(angles) / 11, rel=1e-12)
    assert angle(before, -before) == pytest.approx(1.0)
    assert angle(before, torch.zeros_like(before)) == pytest.approx(0.5)
