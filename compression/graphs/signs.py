"""Which values of a graph are never negative: of these a maximum is not changed by a zero among them."""

from __future__ import annotations

from compression.graphs.graph import Array, Graph, Node

MADE = {
    "Abs",
    "Exp",
    "HardSigmoid",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "Relu",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Sqrt",
}
"""Operators that give nothing negative (`HardSigmoid` and the like for any of their attributes)."""
KEPT = {
    "AveragePool",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "MaxPool",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceSum",
}
"""Operators that give nothing negative if their first input has nothing negative."""
COMBINED = {"Add", "Concat", "Div", "Max", "Mean", "Min", "Mul", "Sum"}
"""Operators that give nothing negative if none of their inputs has anything negative."""


def nonnegative_values(graph: Graph) -> frozenset[str]:
    """Names of the values and float initializers that hold nothing negative, whatever the inputs are."""
    found = {name for name, array in graph.initializers.items() if _positive(array)}
    for node in graph.nodes:
        if not node.domain and _gives(node, graph, found):
            found.update(name for name in node.outputs if name)
    return frozenset(found)


def _gives(node: Node, graph: Graph, found: set[str]) -> bool:
    if node.operator == "Clip":
        low = graph.initializers.get(node.input(1))
        return node.inputs[0] in found or (low is not None and _positive(low))
    if node.operator == "MaxPool" and len(node.outputs) > 1:
        return False
    if node.operator in MADE:
        return True
    if node.operator in KEPT:
        return node.inputs[0] in found
    return node.operator in COMBINED and all(name in found for name in node.inputs)


def _positive(array: Array) -> bool:
    return array.dtype.kind == "f" and bool((array >= 0).all())
