"""A bias at every node that multiplies by weights, so that one can be fitted; and away again where it was
not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from compression.graphs.graph import Graph, Node

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Biased:
    """A graph with added biases of zeros: by the first output of a node the name of its bias and, for a
    product of matrices, the name of the sum behind it."""

    graph: Graph
    added: Mapping[str, tuple[str, str | None]]

    def pruned(self, graph: Graph, used: set[str]) -> Graph:
        """`graph`, which is this one with other numbers, without added biases of nodes not in `used`."""
        idle = {value: names for value, names in self.added.items() if value not in used}
        sums = {names[1]: value for value, names in idle.items() if names[1]}
        nodes = []
        for node in graph.nodes:
            if node.outputs[0] in sums:
                continue
            inputs = tuple(sums.get(name, name) for name in node.inputs)
            if node.value in idle and idle[node.value][1] is None:
                inputs = inputs[:2]
            nodes.append(node if inputs == node.inputs else replace(node, inputs=inputs))
        gone = {names[0] for names in idle.values()}
        arrays = {name: array for name, array in graph.initializers.items() if name not in gone}
        return replace(graph, nodes=tuple(nodes), initializers=arrays)


def with_biases(graph: Graph) -> Biased:
    """The graph with a bias of zeros at every node that multiplies by float weights and has none. A product
    of matrices that is itself an output of the network gets none."""
    arrays = dict(graph.initializers)
    taken = set(arrays) | set(graph.producers()) | {value.name for value in graph.inputs}
    readers = graph.consumers()
    outputs = {value.name for value in graph.outputs}
    renamed: dict[str, str] = {}
    added: dict[str, tuple[str, str | None]] = {}
    nodes: list[Node] = []

    def fresh(stem: str) -> str:
        while stem in taken:
            stem += "_"
        taken.add(stem)
        return stem

    for one in graph.nodes:
        node = replace(one, inputs=tuple(renamed.get(name, name) for name in one.inputs))
        width = _width(graph, node)
        matmul = node.operator == "MatMul"
        if width is None or (matmul and (node.value in outputs or bias_behind(graph, readers, node.value))):
            nodes.append(node)
            continue
        bias = fresh(f"{node.value}.bias")
        arrays[bias] = np.zeros(width, dtype=graph.initializers[node.inputs[1]].dtype)
        if matmul:
            total = fresh(f"{node.value}.sum")
            nodes += [node, Node("", "Add", "", (node.value, bias), (total,))]
            renamed[node.value] = total
            added[node.value] = bias, total
        else:
            nodes.append(replace(node, inputs=(*node.inputs[:2], bias)))
            added[node.value] = bias, None
    return Biased(replace(graph, nodes=tuple(nodes), initializers=arrays), added)


def bias_behind(graph: Graph, readers: Mapping[str, list[tuple[Node, int]]], value: str) -> str | None:
    """The vector that is added to a value, where nothing else reads either of them."""
    found = readers.get(value, [])
    if len(found) != 1 or found[0][0].operator != "Add":
        return None
    name = found[0][0].inputs[1 - found[0][1]]
    array = graph.initializers.get(name)
    return name if array is not None and array.ndim == 1 and len(readers[name]) == 1 else None


def _width(graph: Graph, node: Node) -> int | None:
    """How many channels a node makes; None if it has a bias or is nothing that could have one."""
    weight = graph.initializers.get(node.input(1)) if node.operator in WEIGHTED else None
    if weight is None or weight.dtype.kind != "f" or (node.operator != "MatMul" and node.input(2)):
        return None
    if node.operator == "MatMul":
        return weight.shape[1] if weight.ndim == 2 else None
    if node.operator == "Gemm":
        return int(weight.shape[0 if node.integer("transB", 0) else 1])
    if node.operator == "ConvTranspose":
        return int(weight.shape[1]) * node.integer("group", 1)
    return int(weight.shape[0])
