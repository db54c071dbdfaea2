"""What stays is fitted to what the dense graph gave."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import helper
from torch import Tensor, nn

from compression.graphs.batches import Batch, BatchInvalid, gaussian_batches
from compression.graphs.cutting import cut
from compression.graphs.dependencies import Anatomy, analyse
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph, read_graph
from compression.graphs.reconstruction import HOWS, Fit, reconstruct
from compression.graphs.renormalising import reestimate
from compression.graphs.synthetic import remembered_batches, statistics_distance
from tests.engine.graphs.exports import stored
from tests.engine.graphs.networks import samples
from tests.engine.graphs.samples import floats, model_of, runtime

REMOVED = {"a:0": [1, 4]}


def pair(bias: bool = True) -> tuple[Anatomy, dict[str, Tensor]]:
    """relu(conv), then a padded strided convolution."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["k"]),
        helper.make_node(
            "Conv", ["k", "b", *(["b0"] if bias else [])], ["y"], pads=[1, 1, 1, 1], strides=[2, 2]
        ),
    ]
    weights = {"a": floats(6, 3, 2, 2), "b": floats(4, 6, 3, 3)} | ({"b0": floats(4)} if bias else {})
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 3, 7, 7)}, ["y"], weights)))
    return found, {name: torch.from_numpy(one).double() for name, one in weights.items()}


def images(count: int = 9) -> list[Batch]:
    x = torch.randn(count, 3, 7, 7, generator=torch.Generator().manual_seed(5)) + 0.3
    return [Batch({"x": x[:4]}), Batch({"x": x[4:]})]


def run(graph: Graph, batches: list[Batch]) -> Tensor:
    with torch.no_grad():
        parts = [GraphModule(graph).eval().run(one.inputs) for one in batches]
    return torch.cat([next(iter(one.values())) for one in parts])


@pytest.mark.parametrize("bias", [True, False])
def test_the_bias_gets_the_mean_of_what_was_removed(bias: bool) -> None:
    found, w = pair(bias)
    made = reconstruct(found, REMOVED, images(), Fit("bias"))
    x = torch.cat([one.inputs["x"] for one in images()]).double()
    gone = F.relu(F.conv2d(x, w["a"]))[:, [1, 4]]
    shift = F.conv2d(gone, w["b"][:, [1, 4]], padding=1, stride=2).mean((0, 2, 3))
    name = "b0" if bias else next(node for node in made.graph.nodes if node.value == "y").inputs[2]
    wanted = shift + (w["b0"] if bias else 0)
    np.testing.assert_allclose(made.graph.initializers[name], wanted.numpy(), rtol=1e-5, atol=1e-6)
    assert made.fitted == {"y": "bias"}
    np.testing.assert_array_equal(made.graph.initializers["b"], np.delete(w["b"].float().numpy(), [1, 4], 1))


def test_moments_are_those_of_the_dense_channels() -> None:
    found, _ = pair()
    made = reconstruct(found, REMOVED, images(), Fit("moments"))
    dense, small = run(found.graph, images()).double(), run(made.graph, images()).double()
    torch.testing.assert_close(small.mean((0, 2, 3)), dense.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small.var((0, 2, 3)), dense.var((0, 2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_least_squares_against_lstsq_over_patches(bias: bool) -> None:
    found, w = pair(bias)
    damping = 0.03
    made = reconstruct(found, REMOVED, images(), Fit("least-squares", damping))
    x = torch.cat([one.inputs["x"] for one in images()]).double()
    k = F.pad(F.relu(F.conv2d(x, w["a"])), (1, 1, 1, 1))
    kept = [0, 2, 3, 5]
    rows = torch.stack([
        k[:, kept, top : top + 3, left : left + 3].flatten(1)
        for top in range(0, 6, 2) for left in range(0, 6, 2)
    ], 1).flatten(0, 1)  # fmt: skip
    wanted = F.conv2d(k, w["b"], w.get("b0"), stride=2).permute(0, 2, 3, 1).reshape(-1, 4)
    old = w["b"][:, kept].flatten(1).T
    ridge = damping * rows.var(0, correction=0).mean() * len(rows)
    # damping as rows of data: sqrt(ridge) * W = sqrt(ridge) * W_old, with no constant
    eye = torch.eye(36, dtype=torch.float64) * ridge.sqrt()
    left = torch.cat(
        [torch.cat([rows, torch.ones(len(rows), 1)], 1), torch.cat([eye, torch.zeros(36, 1)], 1)]
    )
    right = torch.cat([wanted, ridge.sqrt() * old])
    best = torch.linalg.lstsq(left, right).solution
    weights = made.graph.initializers["b"].reshape(4, -1).T
    np.testing.assert_allclose(weights, best[:-1].numpy(), rtol=1e-3, atol=1e-4)
    name = next(node for node in made.graph.nodes if node.value == "y").inputs[2]
    np.testing.assert_allclose(made.graph.initializers[name], best[-1].numpy(), rtol=1e-3, atol=1e-4)


def test_a_unit_that_others_can_stand_in_for_costs_nothing() -> None:
    """Channel 1 is twice channel 0, and channel 4 constant: their readers are fitted exactly."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Add", ["h", "a0"], ["p"]),
        helper.make_node("Relu", ["p"], ["k"]), helper.make_node("MatMul", ["k", "b"], ["q"]),
        helper.make_node("Tanh", ["q"], ["y"]),
    ]  # fmt: skip
    weights = {"a": floats(3, 6), "a0": np.abs(floats(6)), "b": floats(6, 4)}
    weights["a"][:, 1], weights["a0"][1] = 2 * weights["a"][:, 0], 2 * weights["a0"][0]
    weights["a"][:, 4] = 0
    found = analyse(read_graph(model_of(nodes, {"x": floats(2, 5, 3)}, ["y"], weights)))
    batches = [Batch({"x": torch.from_numpy(floats(20, 5, 3, seed=2))})]
    name = found.groups[0].name
    made = reconstruct(found, {name: [1, 4]}, batches, Fit("least-squares", 0))
    torch.testing.assert_close(run(made.graph, batches), run(found.graph, batches), rtol=1e-3, atol=1e-4)
    assert (run(cut(found, {name: [1, 4]}), batches) - run(found.graph, batches)).abs().max() > 0.1
    x = floats(3, 5, 3, seed=7)
    np.testing.assert_allclose(
        runtime(made.graph, {"x": x})[0], runtime(found.graph, {"x": x})[0], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "name", ["option-a", "inverted", "resnext", "vit", "grouped-queries.traced", "unet", "recurrent", "lenet"]
)
@pytest.mark.parametrize("how", HOWS)
def test_networks_come_nearer_to_the_dense_ones(name: str, how: str) -> None:
    found = analyse(read_graph(stored(name)))
    draw = np.random.default_rng(0)
    removed = {
        group.name: draw.permutation(group.units)[: group.units // 3].tolist() for group in found.groups
    }
    x = samples(name.partition(".")[0], 24)
    batches = [Batch({"x": x[:12]}), Batch({"x": x[12:]})]
    made = reconstruct(found, removed, batches, Fit(how))
    dense, plain, fitted = (run(one, batches) for one in (found.graph, cut(found, removed), made.graph))
    assert made.fitted
    if how == "moments":  # each channel has the right size; their sum need not be nearer
        assert torch.isfinite(fitted).all()
    else:
        assert (fitted - dense).square().mean() < (plain - dense).square().mean()
    np.testing.assert_allclose(
        runtime(made.graph, {"x": x[:5].numpy()})[0], run(made.graph, batches)[:5], atol=1e-3
    )
    again = analyse(made.graph)  # what was added is cut like the rest
    assert sum(group.units for group in again.groups) == sum(
        group.units for group in analyse(cut(found, removed)).groups
    )


def test_without_data_and_what_is_refused() -> None:
    found, _ = pair()
    made = reconstruct(found, REMOVED, gaussian_batches(found.graph, 2, 16, {}, seed=1), Fit("least-squares"))
    plain = cut(found, REMOVED)
    assert (run(made.graph, images()) - run(found.graph, images())).square().mean() < (
        run(plain, images()) - run(found.graph, images())
    ).square().mean()
    with pytest.raises(BatchInvalid, match="at least one batch"):
        reconstruct(found, REMOVED, [])
    with pytest.raises(ValueError, match="fitted by bias"):
        Fit("hope")
    unchanged = reconstruct(found, {}, images())
    assert unchanged.fitted == {}
    assert unchanged.graph.nodes == found.graph.nodes


NORMED_WEIGHTS = {
    "a": floats(6, 3, 2, 2), "b": floats(4, 6, 1, 1), "s": floats(6), "t": floats(6, seed=1),
    "m": floats(6, seed=2), "v": np.abs(floats(6, seed=3)), "s2": floats(4), "t2": floats(4, seed=1),
    "m2": floats(4, seed=2), "v2": np.abs(floats(4, seed=3)),
}  # fmt: skip


def normed() -> Graph:
    """Convolutions with batch normalisations behind them."""
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "s", "t", "m", "v"], ["k"], momentum=0.7),
        helper.make_node("Relu", ["k"], ["l"]),
        helper.make_node("Conv", ["l", "b"], ["q"]),
        helper.make_node("BatchNormalization", ["q", "s2", "t2", "m2", "v2"], ["y"]),
    ]
    return read_graph(model_of(nodes, {"x": floats(2, 3, 7, 7)}, ["y"], NORMED_WEIGHTS))


def test_statistics_of_batch_norms_are_measured_anew() -> None:
    weights = NORMED_WEIGHTS
    graph = normed()
    made = reestimate(graph, images())
    one, two = (nn.BatchNorm2d(width, momentum=None) for width in (6, 4))
    w = {name: torch.from_numpy(array) for name, array in weights.items()}
    with torch.no_grad():
        one.weight.copy_(w["s"])
        one.bias.copy_(w["t"])
        for batch in images():
            two(F.conv2d(F.relu(one(F.conv2d(batch.inputs["x"], w["a"]))), w["b"]))
    for name, wanted in (("m", one.running_mean), ("v", one.running_var), ("m2", two.running_mean),
                         ("v2", two.running_var)):  # fmt: skip
        assert wanted is not None
        np.testing.assert_allclose(made.initializers[name], wanted.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(made.initializers["s"], weights["s"])
    plain = pair()[0].graph
    assert reestimate(plain, images()) is plain
    with pytest.raises(BatchInvalid, match="larger batches"):
        reestimate(graph, [Batch({"x": torch.zeros(1, 3, 2, 2)})])


def test_inputs_that_batch_norms_remember() -> None:
    graph = reestimate(normed(), images())  # what it remembers is the images, of mean 0.3
    module = GraphModule(graph).eval()
    (plain,) = gaussian_batches(graph, 1, 16, {}, seed=2)
    (made,) = remembered_batches(graph, 1, 16, {}, seed=2, steps=60)
    with torch.no_grad():
        before, after = statistics_distance(module, plain), statistics_distance(module, made)
    assert after < 0.1 * before
    x = images()[1].inputs["x"]
    q = F.conv2d(x, torch.from_numpy(NORMED_WEIGHTS["a"]))
    mean, deviation = (
        torch.from_numpy(graph.initializers["m"]),
        torch.from_numpy(graph.initializers["v"]).sqrt(),
    )
    first = (
        (q.mean((0, 2, 3)) - mean) ** 2 + (q.std((0, 2, 3), correction=0) - deviation) ** 2
    ) / deviation**2
    with torch.no_grad():
        assert statistics_distance(module, Batch({"x": x})) >= first.mean() * 0.999
    assert torch.equal(
        made.inputs["x"], remembered_batches(graph, 1, 16, {}, seed=2, steps=60)[0].inputs["x"]
    )
    with pytest.raises(BatchInvalid, match="no BatchNormalization"):
        remembered_batches(pair()[0].graph, 1, 4, {}, seed=0)
