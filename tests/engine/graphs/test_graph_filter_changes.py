"""Beta-Rank, the Hessian-aware saliency of groups, and statistics that are balanced over classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compression.graphs.batches import Batch, BatchInvalid, class_weights, first_samples
from compression.graphs.costs import costs
from compression.graphs.criteria import CRITERIA
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.evidence import NEEDS, Collecting, collect
from compression.graphs.feedforward import hidden_neurons
from compression.graphs.graph import read_graph
from tests.engine.graphs.exports import stored
from tests.engine.graphs.networks import samples
from tests.engine.graphs.test_graph_evidence import (
    INNER,
    STREAM,
    WEIGHTS,
    batches,
    data,
    near,
    reference,
    scored,
    small,
)


@pytest.fixture(scope="module")
def found() -> Anatomy:
    return small()


def beta(x: Tensor, z: Tensor, weight: Tensor, shares: Tensor) -> Tensor:
    """Mean |w| times the sum over positions of deviations, output by window, in loops; padding counts."""
    pad = weight.shape[2] // 2
    x = F.pad(x, (pad, pad, pad, pad))
    total = torch.zeros(len(weight), dtype=torch.float64)
    weighed = shares / shares.sum()

    def deviation(values: Tensor) -> Tensor:
        """Over samples (weighed) and all else; values [samples, ...]."""
        flat = values.reshape(len(values), -1)
        mean = (weighed[:, None] * flat).sum() / flat.shape[1]
        return ((weighed[:, None] * (flat - mean) ** 2).sum() / flat.shape[1]).sqrt()

    for channel in range(len(weight)):
        for top in range(z.shape[2]):
            for left in range(z.shape[3]):
                window = x[:, :, top : top + weight.shape[2], left : left + weight.shape[3]]
                total[channel] += deviation(z[:, channel, top, left]) / deviation(window)
    return total * weight.abs().mean((1, 2, 3))


@pytest.mark.parametrize("balanced", [False, True])
def test_beta_rank_is_how_much_filters_change_the_data(found: Anatomy, balanced: bool) -> None:
    made = collect(found, batches(), frozenset({"change"}), Collecting(balanced=balanced))
    x, labels = data()
    w = {name: torch.from_numpy(one).double() for name, one in WEIGHTS.items()}
    _, seen = reference(x.double(), torch.ones(5, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    shares = torch.ones(12, dtype=torch.float64)
    if balanced:
        shares = 1 / torch.bincount(labels)[labels].double()
    inner = beta(seen["h"], F.conv2d(seen["h"], w["b"]), w["b"], shares)
    near(scored("beta-rank", made, found, INNER), inner)
    stream = beta(x.double(), F.conv2d(x.double(), w["a"], w["a0"], padding=1), w["a"], shares)
    stream += beta(seen["k"], F.conv2d(seen["k"], w["c"], padding=1), w["c"], shares)
    near(scored("beta-rank", made, found, STREAM), stream)


def test_beta_rank_of_groups_and_of_matrices() -> None:
    """A window of a group is its own channels; a product with a matrix reads all features of a token."""
    anatomy = analyse(read_graph(stored("shuffle")))
    x = samples("shuffle", 4)
    made = collect(anatomy, [Batch({"x": x})], frozenset({"change"}))
    assert all(
        (one >= 0).all() and one.shape == anatomy.graph.initializers[name].shape
        for name, one in made.weights["change"].items()
    )
    tokens = analyse(read_graph(stored("mixer")))
    some = collect(tokens, [Batch({"x": samples("mixer", 4)})], frozenset({"change"}))
    scores = [CRITERIA["beta-rank"].scores(tokens, group, 0, some) for group in tokens.groups]
    assert all(one is not None and (one > 0).all() for one in scores)


def saliency(sizes: list[int]) -> dict[str, Tensor]:
    """By group, the mean over batches of the squared sum of gradient times weight of all that a unit owns."""
    x, labels = data()
    totals = {STREAM: torch.zeros(5, dtype=torch.float64), INNER: torch.zeros(4, dtype=torch.float64)}
    start = 0
    ones = torch.ones(5, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for size in sizes:
        part = slice(start, start + size)
        w = {
            name: torch.from_numpy(one).double().requires_grad_()
            for name, one in WEIGHTS.items()
            if one.dtype == np.float32
        }
        y, _ = reference(x[part].double(), *ones, w)
        names = list(w)
        slopes = torch.autograd.grad(F.cross_entropy(y, labels[part]), [w[name] for name in names])
        gw = {name: (slope * w[name]).detach() for name, slope in zip(names, slopes, strict=True)}
        stream = gw["a"].sum((1, 2, 3)) + gw["a0"] + gw["b"].sum((0, 2, 3)) + gw["c"].sum((1, 2, 3))
        stream += gw["d"].sum(1)
        inner = gw["b"].sum((1, 2, 3)) + gw["c"].sum((0, 2, 3))
        totals[STREAM] += stream**2 * size / 12
        totals[INNER] += inner**2 * size / 12
        start += size
    return totals


def test_hessian_aware_saliency_is_of_all_weights_of_a_unit(found: Anatomy) -> None:
    made = collect(found, batches(12, 5), frozenset({"gradient.group"}))
    wanted = saliency([5, 5, 2])
    dense = costs(found.graph).macs
    for group in (STREAM, INNER):
        near(scored("hessian-aware", made, found, group), wanted[group], rtol=1e-3)
        saved = (dense - costs(cut(found, {group: [0]})).macs) / dense
        near(scored("hessian-aware-per-mac", made, found, group), wanted[group] / saved, rtol=1e-3)
    with pytest.raises(BatchInvalid, match="class of every sample"):
        collect(found, batches(labelled=False), frozenset({"gradient.group"}))


def imbalanced() -> tuple[list[Batch], list[Batch]]:
    """Nine samples of class 0 and one of class 3; and the same with the one repeated nine times: both have
    the same statistics if classes weigh the same."""
    x, _ = data(10)
    labels = torch.tensor([0] * 9 + [3])
    mixed = [Batch({"x": x}, labels)]
    level = [Batch({"x": torch.cat([x[:9], x[9:].expand(9, -1, -1, -1)])}, torch.tensor([0] * 9 + [3] * 9))]
    return mixed, level


@pytest.mark.parametrize("criterion", sorted(one.name for one in CRITERIA if one.needs))
def test_balanced_statistics_of_an_imbalanced_set_are_those_of_a_level_one(
    found: Anatomy, criterion: str
) -> None:
    """Every criterion that reads data, with labels."""
    mixed, level = imbalanced()
    needs = CRITERIA[criterion].needs
    balanced = collect(found, mixed, needs, Collecting(balanced=True))
    wanted = collect(found, level, needs)
    plain = collect(found, mixed, needs)
    seen = []
    for group in (STREAM, INNER):
        scores: list[NDArray[np.float64]] = []
        for one in (balanced, wanted, plain):
            score = CRITERIA[criterion].scores(found, found.group(group), 0, one)
            assert score is not None
            scores.append(score)
        # labels draw the signs of Hutchinson's estimate for other batches alike: one batch each
        np.testing.assert_allclose(scores[0], scores[1], rtol=2e-3, atol=1e-3 * np.abs(scores[1]).max())
        seen.append(np.allclose(scores[0], scores[2], rtol=1e-3))
    assert not all(seen) or criterion == "hrank"  # ranks of these maps are full for all classes


def test_costly_statistics_weigh_the_classes_of_the_samples_they_take(found: Anatomy) -> None:
    mixed, _ = imbalanced()
    few = first_samples(found.probe, mixed, 4)
    assert [len(one.inputs["x"]) for one in few] == [4]
    assert few[0].labels is not None
    assert few[0].labels.tolist() == [0] * 4
    np.testing.assert_allclose(class_weights(few), [1.0])
    made = collect(found, mixed, frozenset({"removal"}), Collecting(balanced=True, removal_samples=4))
    alone = collect(found, few, frozenset({"removal"}))
    np.testing.assert_allclose(made.units["removal"], alone.units["removal"])
    assert {"change", "gradient.group"} <= NEEDS


@pytest.mark.parametrize(
    "name, count",
    [
        ("vit", 1),
        ("vit.traced", 1),
        ("mixer", 2),
        ("convnext", 2),
        ("lenet", 1),
        ("residual", 0),
        ("inverted", 2),
    ],
)
def test_hidden_neurons_lie_between_two_matrices(name: str, count: int) -> None:
    anatomy = analyse(read_graph(stored(name)))
    names = hidden_neurons(anatomy)
    assert len(names) == count
    assert not any(anatomy.group(one).heads for one in names)
