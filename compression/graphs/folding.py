"""Weights that a graph normalises before it uses them (weight standardisation, weight norm), computed once.

A norm over a weight keeps its axes whole, although what it is for ended with training: on fixed weights it
gives fixed numbers. These take the place of the nodes, and can be cut like any weight.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from compression.graphs.executor import GraphModule
from compression.graphs.graph import Graph, Node, Value

NORMS = {
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "LpNormalization",
    "MeanVarianceNormalization",
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
    "ReduceSumSquare",
    "Softmax",
}
"""Operators that make one number of many."""


def fold_norms(graph: Graph) -> Graph:
    """The graph with what norms over initializers give as initializers, under the names of the values."""
    derived = {name for name, array in graph.initializers.items() if array.dtype.kind in "fiub"}
    made: set[str] = set()
    folded: list[Node] = []
    for node in graph.nodes:
        names = [name for name in node.inputs if name]
        if node.domain or not names or not all(name in derived for name in names):
            continue
        derived.update(node.outputs)
        if node.operator in NORMS or any(name in made for name in names):
            made.update(name for name in node.outputs if name)
            folded.append(node)
    gone = {node.value for node in folded}
    left = tuple(node for node in graph.nodes if node.value not in gone)
    wanted = {name for node in left for name in node.inputs} | {value.name for value in graph.outputs}
    wanted &= made
    if not wanted or wanted & {value.name for value in graph.outputs}:
        return graph
    values = tuple(Value(name, 1, None) for name in sorted(wanted))
    part = replace(graph, inputs=(), outputs=values).without_dead_parts()
    with torch.no_grad():
        found = GraphModule(part).eval().run({})
    arrays = {name: tensor.contiguous().numpy() for name, tensor in found.items()}
    return replace(graph, nodes=left, initializers={**graph.initializers, **arrays}).without_dead_parts()
