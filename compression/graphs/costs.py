"""Parameters and multiply-accumulates of a graph, exactly, also of a graph that is yet to be cut.

Counted are Conv, ConvTranspose, MatMul, Gemm, Einsum, LSTM, GRU and RNN: one multiply-accumulate for each
product that is summed; biases, normalisation and whatever works element by element count nothing. Counts
are for one sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from compression.graphs.dependencies import Anatomy
from compression.graphs.executor import trained_initializers
from compression.graphs.graph import Graph, Node
from compression.graphs.operators.recurrent import GATES
from compression.graphs.probe import BATCHES, Probe, Shape, probe
from compression.graphs.removal import Cut, Removed, removed_labels

Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Costs:
    """Multiply-accumulates of one sample by node (its first output), and elements of trained initializers."""

    macs_by_node: Mapping[str, int]
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one sample."""
        return sum(self.macs_by_node.values())


def _convolution(node: Node, shapes: Shapes) -> int:
    weight = shapes[node.inputs[1]]
    over = shapes[node.outputs[0]] if node.operator == "Conv" else shapes[node.inputs[0]]
    return math.prod(over) * math.prod(weight[1:])


def _matmul(node: Node, shapes: Shapes) -> int:
    return math.prod(shapes[node.outputs[0]]) * shapes[node.inputs[0]][-1]


def _gemm(node: Node, shapes: Shapes) -> int:
    inner = shapes[node.inputs[0]][0 if node.integer("transA", 0) else 1]
    return math.prod(shapes[node.outputs[0]]) * inner


def _einsum(node: Node, shapes: Shapes) -> int:
    terms = node.text("equation", "").replace(" ", "").partition("->")[0].split(",")
    if len(terms) == 1 or any("." in term for term in terms):
        return 0
    sizes: dict[str, int] = {}
    for name, term in zip(node.inputs, terms, strict=True):
        for letter, size in zip(term, shapes[name], strict=True):
            sizes[letter] = max(sizes.get(letter, 1), size)
    return math.prod(sizes.values()) * (len(terms) - 1)


def _recurrent(node: Node, shapes: Shapes) -> int:
    steps, batch, width = shapes[node.inputs[0]]
    directions, _, hidden = shapes[node.inputs[2]]
    return steps * batch * directions * GATES[node.operator] * hidden * (width + hidden)


COUNTED: dict[str, Callable[[Node, Shapes], int]] = {
    "Conv": _convolution, "ConvTranspose": _convolution, "MatMul": _matmul, "Gemm": _gemm, "Einsum": _einsum,
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
}  # fmt: skip


def _per_sample(node: Node, shapes: tuple[Shapes, Shapes]) -> int:
    """What a batch of one would cost: costs are linear in the batch."""
    count = COUNTED[node.operator]
    first, second = count(node, shapes[0]), count(node, shapes[1])
    if first == second:
        return first
    slope = (second - first) // (BATCHES[1] - BATCHES[0])
    return first - slope * (BATCHES[0] - 1)


def costs(graph: Graph, sizes: Mapping[str, int] | None = None, seen: Probe | None = None) -> Costs:
    """The costs of a graph at the shapes of `seen`, or of a run with these sizes."""
    seen = seen or probe(graph, sizes)
    macs = {
        node.outputs[0]: _per_sample(node, seen.shapes) for node in graph.nodes if node.operator in COUNTED
    }
    parameters = sum(int(graph.initializers[name].size) for name in trained_initializers(graph))
    return Costs(macs, parameters)


class CostModel:
    """Costs of a graph without some units, by arithmetic on its shapes alone."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._nodes = [node for node in anatomy.graph.nodes if node.operator in COUNTED]
        self._trained = sorted(trained_initializers(anatomy.graph))
        values = {name for node in self._nodes for name in (*node.inputs, *node.outputs) if name}
        self._values = sorted(values | set(self._trained))

    def without(self, removed: Removed) -> Costs:
        """The costs after these units are removed."""
        first, second = self.shapes(removed)
        macs = {node.value: _per_sample(node, (first, second)) for node in self._nodes}
        return Costs(macs, sum(math.prod(first[name]) for name in self._trained))

    def shapes(self, removed: Removed) -> tuple[Shapes, Shapes]:
        """Shapes of what counted operators read and give and of trained initializers, after these units are
        removed, in both samples of the probe."""
        cut = Cut(self._anatomy, removed_labels(self._anatomy, removed))
        first: dict[str, Shape] = {}
        second: dict[str, Shape] = {}
        for name in self._values:
            pairs = self._anatomy.probe.pairs(name)
            kept = [cut.size(name, axis) for axis in range(len(pairs))]
            first[name] = tuple(kept)
            # an axis that holds the batch loses the same share of each sample
            second[name] = tuple(now * pair[1] // pair[0] for now, pair in zip(kept, pairs, strict=True))
        return first, second
