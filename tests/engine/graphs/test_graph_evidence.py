"""What data say of units, against a float64 network written by hand with a factor at every reader."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from compression.graphs.batches import Batch, BatchInvalid, class_weights
from compression.graphs.criteria import CRITERIA
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.evidence import NEEDS, Collecting, Evidence, EvidenceMissing, collect
from compression.graphs.graph import read_graph
from compression.graphs.masking import mask
from compression.seeds import site_generator
from tests.engine.graphs.exports import stored
from tests.engine.graphs.networks import samples
from tests.engine.graphs.samples import floats, model_of, whole

WEIGHTS = {
    "a": floats(5, 3, 3, 3), "a0": floats(5), "b": floats(4, 5, 1, 1), "c": floats(5, 4, 3, 3) / 3,
    "d": floats(5, 7), "d0": floats(7), "axes": whole(2, 3),
}  # fmt: skip
STREAM, INNER = "a:0", "b:0"


def small() -> Anatomy:
    """h = relu(conv x), y = gemm(mean(h + conv(relu(conv h)))): the units of h are read twice."""
    nodes = [
        helper.make_node("Conv", ["x", "a", "a0"], ["p"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["p"], ["h"]),
        helper.make_node("Conv", ["h", "b"], ["q"]),
        helper.make_node("Relu", ["q"], ["k"]),
        helper.make_node("Conv", ["k", "c"], ["r"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["h", "r"], ["s"]),
        helper.make_node("ReduceMean", ["s", "axes"], ["m"], keepdims=0),
        helper.make_node("Gemm", ["m", "d", "d0"], ["y"]),
    ]
    return analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 6, 6)}, ["y"], WEIGHTS)))


def reference(
    x: Tensor, stream: Tensor, inner: Tensor, given: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs, and what passes the readers, in float64."""
    w = {name: torch.from_numpy(one).double() for name, one in WEIGHTS.items()} | (given or {})
    h = F.relu(F.conv2d(x, w["a"], w["a0"], padding=1))
    k = F.relu(F.conv2d(h * stream[:, None, None], w["b"]))
    s = h + F.conv2d(k * inner[:, None, None], w["c"], padding=1)
    m = s.mean((2, 3))
    return (m * stream) @ w["d"] + w["d0"], {"h": h, "k": k, "s": s, "m": m}


def data(count: int = 12) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, 6, 6, generator=draw), torch.arange(count) ** 2 % 7


def batches(count: int = 12, size: int = 5, labelled: bool = True) -> list[Batch]:
    x, labels = data(count)
    return [
        Batch({"x": x[start : start + size]}, labels[start : start + size] if labelled else None)
        for start in range(0, count, size)
    ]


def near(made: NDArray[np.float64] | None, wanted: Tensor, rtol: float = 2e-4) -> None:
    assert made is not None
    expected = wanted.detach().numpy()
    np.testing.assert_allclose(made, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def gradients(weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """By sample, derivatives of its cross entropy by the factors: [samples, 5], [samples, 4]."""
    x, labels = data()
    rows: tuple[list[Tensor], list[Tensor]] = ([], [])
    for one, label in zip(x.double(), labels, strict=True):
        factors = torch.ones(5, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
        for factor in factors:
            factor.requires_grad_()
        logits, _ = reference(one[None], *factors)
        loss = torch.logsumexp(logits[0], 0) - logits[0, label]
        for row, slope in zip(rows, torch.autograd.grad(loss, factors), strict=True):
            row.append(slope)
    return torch.stack(rows[0]), torch.stack(rows[1])


def scored(name: str, evidence: Evidence, found: Anatomy, group: str) -> NDArray[np.float64] | None:
    return CRITERIA[name].scores(found, found.group(group), 0, evidence)


@pytest.fixture(scope="module")
def found() -> Anatomy:
    return small()


def test_activations_are_averaged_where_units_are_read(found: Anatomy) -> None:
    assert {group.name: group.units for group in found.groups} == {STREAM: 5, INNER: 4}
    made = collect(found, batches(), CRITERIA["variance"].needs)
    x, _ = data()
    _, seen = reference(x.double(), torch.ones(5, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    h, k, m = seen["h"].movedim(1, -1).reshape(-1, 5), seen["k"].movedim(1, -1).reshape(-1, 4), seen["m"]
    near(scored("variance", made, found, INNER), k.var(0, correction=0))
    near(scored("variance", made, found, STREAM), (h.var(0, correction=0) + m.var(0, correction=0)) / 2)
    near(scored("attention-l1", made, found, STREAM), (h.abs().mean(0) + m.abs().mean(0)) / 2)
    near(scored("attention-l2", made, found, INNER), (k**2).mean(0))
    near(made.of(found.group(INNER), "activation.mean"), k.mean(0))
    assert made.samples == 12


def test_taylor_and_fisher_are_derivatives_by_a_factor_at_all_readers(found: Anatomy) -> None:
    made = collect(found, batches(), frozenset({"gradient.sum", "gradient.square"}))
    stream, inner = gradients()
    near(scored("taylor", made, found, STREAM), stream.mean(0).abs())
    near(scored("taylor", made, found, INNER), inner.mean(0).abs())
    near(scored("group-fisher", made, found, STREAM), (stream**2).mean(0) / 2)
    near(scored("group-fisher", made, found, INNER), (inner**2).mean(0) / 2)


def test_balanced_statistics_are_means_over_classes(found: Anatomy) -> None:
    made = collect(found, batches(), frozenset({"gradient.sum"}), Collecting(balanced=True))
    _, inner = gradients()
    _, labels = data()
    by_class = torch.stack([inner[labels == one].mean(0) for one in labels.unique()])
    near(scored("taylor", made, found, INNER), by_class.mean(0).abs())
    weights = class_weights(batches())
    assert abs(weights[labels.numpy()].mean() - 1) < 1e-12


def test_without_labels_fisher_is_the_squared_derivative_of_the_outputs(found: Anatomy) -> None:
    many = [one for _ in range(400) for one in batches(4, 4, labelled=False)]
    made = collect(found, many, frozenset({"gradient.square"}))
    x, _ = data(4)
    rows = [
        torch.autograd.functional.jacobian(
            lambda inner, one=one: reference(one[None], torch.ones(5, dtype=torch.float64), inner)[0][0],
            torch.ones(4, dtype=torch.float64),
        )
        for one in x.double()
    ]
    near(scored("group-fisher", made, found, INNER), (torch.stack(rows) ** 2).sum(1).mean(0) / 2, rtol=0.1)
    with pytest.raises(BatchInvalid, match="first-order criteria need the class"):
        collect(found, batches(labelled=False), frozenset({"gradient.sum"}))


@pytest.mark.parametrize("labelled", [True, False])
def test_curvature_is_that_of_the_weights_that_make_units(found: Anatomy, labelled: bool) -> None:
    x, labels = data(4)
    w = {name: torch.from_numpy(WEIGHTS[name]).double() for name in ("a", "b", "c")}
    shapes = [one.shape for one in w.values()]
    sizes = [one.numel() for one in w.values()]
    ones = torch.ones(5, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    dense = reference(x.double(), *ones)[0]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.reshape(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        logits = reference(x.double(), *ones, dict(zip(w, parts, strict=True)))[0]
        if not labelled:
            return ((logits - dense) ** 2).sum() / 2 / 4
        return (torch.logsumexp(logits, 1) - logits[torch.arange(4), labels]).mean()

    point = torch.cat([one.flatten() for one in w.values()])
    hessian = torch.autograd.functional.hessian(loss, point)
    slope = torch.autograd.functional.jacobian(loss, point)
    share = point * (hessian @ point / 2 - slope)
    made = collect(found, batches(4, 4, labelled), frozenset({"curvature.self"}))
    wanted = share.split(sizes)[1].reshape(4, -1).sum(1).abs()
    near(scored("oba", made, found, INNER), wanted, rtol=2e-3)
    # Hutchinson's estimate with the same signs; the expectation of v v^T is the identity
    draw = site_generator(0, "signs of Hutchinson's estimate")
    estimate = torch.zeros_like(point)
    for _ in range(3):
        signs = torch.cat(
            [(torch.randint(0, 2, shape, generator=draw) * 2.0 - 1).flatten() for shape in shapes]
        )
        estimate += signs * (hessian @ signs.double()) / 3
    some = collect(found, batches(4, 4, labelled), frozenset({"curvature.trace"}), Collecting(probes=3))
    trace = estimate.split(sizes)[1].reshape(4, -1).sum(1)
    near(scored("hap", some, found, INNER), trace / 10 * w["b"].square().sum((1, 2, 3)), rtol=2e-3)


def test_ranks_of_maps(found: Anatomy) -> None:
    made = collect(found, batches(), frozenset({"activation.rank"}), Collecting(rank_samples=7))
    x, _ = data()
    _, seen = reference(
        x[:7].double(), torch.ones(5, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    )
    for group, maps in ((STREAM, seen["h"]), (INNER, seen["k"])):
        ranks = [[np.linalg.matrix_rank(one.numpy().astype(np.float32)) for one in image] for image in maps]
        np.testing.assert_allclose(scored("hrank", made, found, group), np.mean(ranks, axis=0))


def test_loss_of_removal_is_the_loss_of_the_masked_network(found: Anatomy) -> None:
    made = collect(found, batches(), frozenset({"removal"}))
    x, labels = data()
    with torch.no_grad():
        dense = F.cross_entropy(mask(found, {}).module()(x)["y"], labels)
        rises = [
            F.cross_entropy(mask(found, {STREAM: [unit]}).module()(x)["y"], labels) - dense
            for unit in range(5)
        ]
    near(scored("loss-of-removal", made, found, STREAM), torch.stack(rises), rtol=1e-4)
    pair = collect(found, batches(), frozenset({"removal"}), Collecting(together=2, removal_samples=5))
    first = scored("loss-of-removal", pair, found, INNER)
    assert first is not None
    assert first[0] == first[1] != first[2]


def test_what_readers_lose_is_that_of_the_best_update(found: Anatomy) -> None:
    """Fitting what stays by lstsq, with the damping as rows of data, leaves the error that was told."""
    made = scored("obs", collect(found, batches(), frozenset({"reading"})), found, INNER)
    assert made is not None
    x, _ = data()
    ones = torch.ones(5, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    k = F.pad(reference(x.double(), *ones)[1]["k"], (1, 1, 1, 1))
    rows = torch.stack([
        k[:, :, top : top + 3, left : left + 3].flatten(1) for top in range(6) for left in range(6)
    ]).flatten(0, 1)  # fmt: skip
    rows = rows - rows.mean(0)
    weight = torch.from_numpy(WEIGHTS["c"]).double().flatten(1).T
    ridge = 0.01 * rows.var(0, correction=0).mean() * len(rows)
    damped = torch.cat([rows, ridge.sqrt() * torch.eye(36, dtype=torch.float64)])
    for unit in range(4):
        kept = [one for one in range(36) if one // 9 != unit]
        solution = torch.linalg.lstsq(damped[:, kept], damped @ weight).solution
        error = (damped @ weight - damped[:, kept] @ solution).square().sum() / (rows @ weight).square().sum()
        np.testing.assert_allclose(made[unit], float(error), rtol=1e-3)


def test_relevance_by_the_epsilon_rule(found: Anatomy) -> None:
    """Written out by hand for the inner units: what the last convolution gets of the explained logit."""
    made = collect(found, batches(5, 5), frozenset({"relevance"}))
    x, labels = data(5)
    ones = torch.ones(5, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    y, seen = reference(x.double(), *ones)
    w = {name: torch.from_numpy(one).double() for name, one in WEIGHTS.items()}

    def stable(z: Tensor) -> Tensor:
        return z + 0.01 * z.square().mean().sqrt() * torch.where(z >= 0, 1.0, -1.0)

    explained = y[torch.arange(5), labels] / stable(y)[torch.arange(5), labels]
    pooled = seen["m"] * explained[:, None] * w["d"][:, labels].T
    spread = seen["s"] / 36 * (pooled / stable(seen["m"]))[:, :, None, None]
    branch = (seen["s"] - seen["h"]) * spread / stable(seen["s"])
    wanted = torch.zeros(5, 4, dtype=torch.float64)
    ratio = F.pad(branch / stable(seen["s"] - seen["h"]), (1, 1, 1, 1))
    for row in range(6):
        for column in range(6):
            near_by = ratio[:, :, row : row + 3, column : column + 3].flip(2, 3)
            got = torch.einsum("nohw,oihw->ni", near_by, w["c"])
            wanted += seen["k"][:, :, row, column] * got
    near(scored("lrp", made, found, INNER), wanted.abs().mean(0), rtol=1e-3)


@pytest.mark.parametrize(
    "name", ["option-a", "lenet", "dense", "grouped-queries", "recurrent", "windows", "shuffle"]
)
def test_all_statistics_of_networks_and_twice_the_same(name: str) -> None:
    anatomy = analyse(read_graph(stored(name)))
    x = samples(name, 6)
    given = [Batch({"x": x[:4]}, torch.tensor([0, 1, 2, 3])), Batch({"x": x[4:]}, torch.tensor([4, 0]))]
    needs = NEEDS - ({"relevance"} if name == "recurrent" else set())
    made, again = (collect(anatomy, given, needs, Collecting(together=4)) for _ in range(2))
    silent = set(made.gates.silent)
    assert bool(silent) == (name == "recurrent")
    for need in made.units:
        np.testing.assert_array_equal(made.units[need], again.units[need])
        for group in anatomy.groups:
            known = made.of(group, need)
            assert (known is None) == (group.name in silent) or need in {"activation.rank", "reading"}
    # a batch more or less does not matter to what a sample says
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    single = [Batch({"x": x[one : one + 1]}, labels[one : one + 1]) for one in range(6)]
    split = collect(anatomy, single, frozenset({"gradient.square"}))
    np.testing.assert_allclose(
        split.units["gradient.square"], made.units["gradient.square"], rtol=1e-3, atol=1e-9
    )


def test_what_is_missing_is_named(found: Anatomy) -> None:
    with pytest.raises(BatchInvalid, match="at least one batch"):
        collect(found, [], frozenset({"removal"}))
    with pytest.raises(EvidenceMissing, match="no statistic 'gradient'"):
        collect(found, batches(), frozenset({"gradient"}))
    with pytest.raises(EvidenceMissing, match="collect evidence"):
        CRITERIA["taylor"].scores(found, found.groups[0], 0)
    with pytest.raises(BatchInvalid, match=r"classes 0 to 6"):
        collect(found, [Batch({"x": data()[0]}, torch.full((12,), 7))], frozenset({"gradient.sum"}))
    with pytest.raises(BatchInvalid, match="does not fit labels"):
        collect(
            found, [Batch({"x": data()[0]}, torch.zeros(3, dtype=torch.int64))], frozenset({"gradient.sum"})
        )
    with pytest.raises(BatchInvalid, match="class of every sample"):
        collect(found, batches(labelled=False), frozenset({"removal"}), Collecting(balanced=True))


def test_samples_that_are_mixed_along_an_axis_are_told() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["t", "rows"], ["r"]),
        helper.make_node("Gemm", ["r", "a"], ["h"]),
        helper.make_node("Gemm", ["h", "b"], ["k"]),
        helper.make_node("Reshape", ["k", "back"], ["l"]),
        helper.make_node("ReduceMean", ["l", "first"], ["y"], keepdims=0),
    ]
    weights = {
        "a": floats(4, 6), "b": floats(6, 7), "rows": whole(-1, 4), "back": whole(5, -1, 7),
        "first": whole(0),
    }  # fmt: skip
    anatomy = analyse(read_graph(model_of(nodes, {"x": floats(2, 5, 4)}, ["y"], weights)))
    x, labels = torch.from_numpy(floats(3, 5, 4)), torch.tensor([0, 3, 6])
    with pytest.raises(BatchInvalid, match=r"'h' cannot be told apart: give batches of one sample"):
        collect(anatomy, [Batch({"x": x}, labels)], frozenset({"gradient.square"}))
    single = [Batch({"x": x[one : one + 1]}, labels[one : one + 1]) for one in range(3)]
    assert np.isfinite(
        collect(anatomy, single, frozenset({"gradient.square"})).units["gradient.square"]
    ).all()
