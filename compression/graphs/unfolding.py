"""BatchNorms put behind convolutions for as long as a graph is trained, and folded into them afterwards.

Exporters fold BatchNorms into the convolutions before them. What is left computes the same and trains badly:
the scale of every layer rests on weights alone. Any BatchNorm whose scale and shift undo what it normalises
is the identity, so one can be put back without knowing the one that was folded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from compression.graphs.batches import Batches, BatchInvalid
from compression.graphs.executor import GraphModule
from compression.graphs.graph import Array, Graph, Node
from compression.graphs.training import weights_of

EPSILON = 1e-5
NORMS = {
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "LRN",
    "MeanVarianceNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
}
PARTS = ("scale", "shift", "mean", "variance")
Statistics = dict[str, Tensor]
"""By the name of a convolution's output, its mean and variance, float64 [2, channels]."""


def folded_convolutions(graph: Graph) -> list[Node]:
    """The convolutions that a BatchNorm may have been folded into: with weights and a bias of their own that
    are stored; none if the graph normalises anything."""
    if any(node.operator in NORMS for node in graph.nodes):
        return []
    stored, readers = weights_of(graph), Counter(name for node in graph.nodes for name in node.inputs if name)
    return [
        node
        for node in graph.nodes
        if node.operator == "Conv"
        and node.input(2)
        and all(name in stored and readers[name] == 1 for name in node.inputs[1:3])
    ]


def measure(graph: Graph, batches: Batches) -> Statistics:
    """Mean and variance of what these convolutions give, over all values of a channel in all batches.
    BatchInvalid without batches."""
    if not batches:
        raise BatchInvalid("statistics are measured on at least one batch")
    module = GraphModule(graph).eval()
    sums: Statistics = {}
    counts: Counter[str] = Counter()

    def watch(name: str) -> None:
        def note(tensor: Tensor) -> None:
            values = tensor.detach().movedim(1, -1).flatten(0, -2).double()
            found = torch.stack([values.sum(0), values.square().sum(0)])
            sums[name] = sums[name] + found if name in sums else found
            counts[name] += len(values)

        module.watch(name, note)

    for node in folded_convolutions(graph):
        watch(node.value)
    with torch.no_grad():
        for batch in batches:
            module.run(batch.inputs)
    found = {}
    for name, total in sums.items():
        mean, square = total / counts[name]
        found[name] = torch.stack([mean, (square - mean.square()).clamp_min(0.0)])
    return found


def unfold(graph: Graph, statistics: Mapping[str, Tensor]) -> Graph:
    """The graph with a BatchNorm behind each measured convolution that changes nothing: its scale and shift
    are the deviation and the mean that it normalises by. Values keep their names."""
    nodes: list[Node] = []
    arrays: dict[str, Array] = dict(graph.initializers)
    for node in graph.nodes:
        if node.operator != "Conv" or node.value not in statistics:
            nodes.append(node)
            continue
        value, before, names = node.value, f"{node.value}.convolved", _names(node)
        mean, variance = (one.numpy() for one in statistics[value])
        kind = arrays[node.inputs[1]].dtype
        for name, one in zip(names, (np.sqrt(variance + EPSILON), mean, mean, variance), strict=True):
            arrays[name] = one.astype(kind)
        nodes.append(replace(node, outputs=(before,)))
        nodes.append(
            Node(
                f"{value}.normalised",
                "BatchNormalization",
                "",
                (before, *names),
                (value,),
                {"epsilon": EPSILON, "momentum": 0.9},
            )
        )
    return replace(graph, nodes=tuple(nodes), initializers=arrays)


def fold(trained: Graph, graph: Graph) -> Graph:
    """The graph that was unfolded with the weights of what was trained, its BatchNorms folded in float64."""
    arrays = {name: trained.initializers[name] for name in graph.initializers}
    for node in graph.nodes:
        names = _names(node)
        if node.operator != "Conv" or names[0] not in trained.initializers:
            continue
        scale, shift, mean, variance = (trained.initializers[name].astype(np.float64) for name in names)
        weight, bias = node.inputs[1:3]
        factor = scale / np.sqrt(variance + EPSILON)
        kinds = arrays[weight].dtype, arrays[bias].dtype
        wide = arrays[weight].astype(np.float64)
        arrays[weight] = (wide * factor.reshape(-1, *(1,) * (wide.ndim - 1))).astype(kinds[0])
        arrays[bias] = ((arrays[bias].astype(np.float64) - mean) * factor + shift).astype(kinds[1])
    return replace(graph, initializers=arrays)


def _names(node: Node) -> list[str]:
    return [f"{node.value}.{part}" for part in PARTS]
