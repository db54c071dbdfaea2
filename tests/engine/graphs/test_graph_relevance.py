"""Relevance through attention, norms and gates, against formulas written out in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from onnx import helper
from torch import Tensor

from compression.graphs.batches import Batch
from compression.graphs.dependencies import analyse
from compression.graphs.evidence import collect
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph, read_graph
from compression.graphs.relevance import propagate
from tests.engine.graphs.exports import stored
from tests.engine.graphs.networks import samples
from tests.engine.graphs.samples import floats, model_of, whole

LABELS = torch.tensor([1, 0, 2])


def relevance(graph: Graph, x: Tensor) -> dict[str, Tensor]:
    return propagate(GraphModule(graph).eval(), Batch({"x": x}, LABELS))


def stable(z: Tensor) -> Tensor:
    return z + 0.01 * z.square().mean().sqrt() * torch.where(z >= 0, 1.0, -1.0)


def read_by(graph: list[object], weights: dict[str, object], width: int) -> tuple[Graph, Tensor]:
    """Nodes from x [n, 4, width] to h [n, 4, width], with a mean and three logits behind; the float64 weights
    of the logits."""
    nodes = [*graph, helper.make_node("ReduceMean", ["h", "axes"], ["m"], keepdims=0),
             helper.make_node("MatMul", ["m", "head"], ["y"])]  # fmt: skip
    head = floats(width, 3, seed=8)
    arrays = {**weights, "head": head, "axes": whole(1)}
    return read_graph(model_of(nodes, {"x": floats(2, 4, width)}, ["y"], arrays)), torch.from_numpy(head)


def behind(h: Tensor, head: Tensor) -> Tensor:
    """The relevance of h [n, 4, width], token by token and channel by channel."""
    m = h.mean(1)
    y = m @ head
    given = torch.zeros_like(h)
    for sample, label in enumerate(LABELS):
        share = y[sample, label] / stable(y)[sample, label]
        for channel in range(h.shape[2]):
            pooled = m[sample, channel] * head[channel, label] * share
            for token in range(h.shape[1]):
                given[sample, token, channel] = (
                    h[sample, token, channel] / h.shape[1] * pooled / stable(m)[sample, channel]
                )
    return given


def test_attention_by_the_rules_of_attnlrp() -> None:
    """Proposition 3.3 for both products, 3.1 for softmax, in loops."""
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["queries"]), helper.make_node("MatMul", ["x", "k"], ["keys"]),
        helper.make_node("MatMul", ["x", "v"], ["values"]),
        helper.make_node("Transpose", ["keys"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["queries", "turned"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "values"], ["h"]),
    ]  # fmt: skip
    weights = {name: floats(5, 5, seed=place) / 2 for place, name in enumerate("qkv")}
    graph, head = read_by(nodes, dict(weights), 5)
    x = torch.from_numpy(floats(3, 4, 5, seed=4))
    found = relevance(graph, x)
    q, k, v = (x.double() @ torch.from_numpy(weights[name]).double() for name in "qkv")
    scores = q @ k.mT
    shares = scores.softmax(-1)
    h = shares @ v
    given = behind(h, head.double())
    of_shares, of_values, of_scores, of_queries = (torch.zeros_like(one) for one in (shares, v, scores, q))
    for n in range(3):
        for j in range(4):
            for i in range(4):
                for p in range(5):
                    part = shares[n, j, i] * v[n, i, p] * given[n, j, p] / (2 * stable(h)[n, j, p])
                    of_shares[n, j, i] += part
                    of_values[n, i, p] += part
            total = float(of_shares[n, j].sum())
            for i in range(4):
                of_scores[n, j, i] = scores[n, j, i] * (of_shares[n, j, i] - shares[n, j, i] * total)
                for p in range(5):
                    of_queries[n, j, p] += (
                        q[n, j, p] * k[n, i, p] * of_scores[n, j, i] / (2 * stable(scores)[n, j, i])
                    )
    for name, wanted in (
        ("shares", of_shares),
        ("values", of_values),
        ("scores", of_scores),
        ("queries", of_queries),
    ):
        np.testing.assert_allclose(found[name], wanted, rtol=2e-3, atol=2e-4 * float(wanted.abs().max()))


def layer(x: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm over the last axis gives, and the matrix that takes the mean away."""
    width = x.shape[-1]
    centring = torch.eye(width, dtype=x.dtype) - 1 / width
    deviation = (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return (x @ centring) / deviation * scale + bias, centring


def test_norms_are_linear_with_their_deviation_as_a_constant() -> None:
    nodes = [helper.make_node("LayerNormalization", ["x", "s", "t"], ["h"])]
    weights = {"s": floats(6), "t": floats(6, seed=1)}
    graph, head = read_by(nodes, dict(weights), 6)
    x = torch.from_numpy(floats(3, 4, 6, seed=4))
    found = relevance(graph, x)["x"]
    scale, bias = (torch.from_numpy(one).double() for one in weights.values())
    h, centring = layer(x.double(), scale, bias)
    ratio = behind(h, head.double()) / stable(h)
    deviation = (x.double().var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    wanted = x.double() * ((ratio * scale / deviation) @ centring)
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-4 * float(wanted.abs().max()))


GATES: dict[str, tuple[list[object], Callable[[Tensor], Tensor]]] = {
    "silu": (
        [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["h"])],
        torch.nn.functional.silu,
    ),
    "gelu": (
        [
            helper.make_node("Div", ["x", "root"], ["d"]), helper.make_node("Erf", ["d"], ["e"]),
            helper.make_node("Add", ["e", "one"], ["a"]), helper.make_node("Mul", ["x", "a"], ["p"]),
            helper.make_node("Mul", ["p", "half"], ["h"]),
        ],
        torch.nn.functional.gelu,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(GATES))
def test_a_function_of_single_elements_passes_however_it_is_written(name: str) -> None:
    nodes, function = GATES[name]
    constants = {
        "root": np.float32(math.sqrt(2)),
        "one": np.float32(1),
        "half": np.array([0.5], dtype=np.float32),
    }
    graph, head = read_by(nodes, dict(constants), 6)
    x = torch.from_numpy(floats(3, 4, 6, seed=4))
    wanted = behind(function(x.double()), head.double())
    np.testing.assert_allclose(
        relevance(graph, x)["x"], wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max())
    )


def test_a_gate_of_other_values_shares_half_and_half() -> None:
    """x [n, 4, 6] times a gate for each channel that its mean makes."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["p"], keepdims=1),
        helper.make_node("MatMul", ["p", "w"], ["g"]),
        helper.make_node("Mul", ["x", "g"], ["h"]),
    ]
    graph, head = read_by(nodes, {"w": floats(6, 6)}, 6)
    x = torch.from_numpy(floats(3, 4, 6, seed=4))
    found = relevance(graph, x)
    gate = x.double().mean(1, keepdim=True) @ torch.from_numpy(floats(6, 6)).double()
    h = x.double() * gate
    half = behind(h, head.double()) * h / stable(h) / 2
    np.testing.assert_allclose(found["g"], half.sum(1, keepdim=True), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("one, other", [("vit", "vit-fused"), ("vit.traced", "vit-fused.traced")])
def test_attention_is_attention_however_it_is_exported(one: str, other: str) -> None:
    found = []
    for name in (one, other):
        anatomy = analyse(read_graph(stored(name)))
        batch = Batch({"x": samples("vit", 6)}, torch.tensor([0, 1, 2, 3, 4, 0]))
        made = collect(anatomy, [batch], frozenset({"relevance"}))
        found.append(np.sort(made.units["relevance"]))
        assert all(made.of(group, "relevance") is not None for group in anatomy.groups)
        assert (found[-1] > 0).all()
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


def test_masked_scores_have_no_relevance_and_no_nan() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "k"], ["scores"]),
        helper.make_node("Add", ["scores", "mask"], ["a"]),
        helper.make_node("Softmax", ["a"], ["h"]),
    ]  # fmt: skip
    mask = np.where(np.triu(np.ones((4, 4)), 1) > 0, -np.inf, 0).astype(np.float32)
    graph, _ = read_by(nodes, {"k": floats(4, 4), "mask": mask}, 4)
    found = relevance(graph, torch.from_numpy(floats(3, 4, 4, seed=4)))
    assert torch.isfinite(found["x"]).all()
    assert not found["a"][:, 0, 1:].any()


def test_operators_without_a_rule_are_named() -> None:
    anatomy = analyse(read_graph(stored("recurrent")))
    batch = Batch({"x": samples("recurrent", 2)}, torch.tensor([0, 1]))
    with pytest.raises(Exception, match="GRU 'node_gru__1': relevance has no rule for this operator"):
        collect(anatomy, [batch], frozenset({"relevance"}))
