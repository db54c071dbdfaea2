"""The shapes of a graph's layers, whole or without some units, as their times are measured."""

from __future__ import annotations

from collections.abc import Mapping

from compression.graphs.costs import COUNTED, CostModel, Shapes
from compression.graphs.dependencies import Anatomy
from compression.graphs.graph import Node
from compression.graphs.layer_shape import CONVOLUTIONS, PRODUCTS, LayerShape
from compression.graphs.probe import BATCHES, Shape
from compression.graphs.removal import Removed

LayerShapes = dict[str, LayerShape]
"""By the value that a node computes."""


class LayerModel:
    """Shapes of the layers of a graph (Conv, ConvTranspose, Gemm, MatMul) without some units, at a batch of
    one (or the batch that the graph fixes), by arithmetic alone."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._costs = CostModel(anatomy)
        self._nodes = [node for node in anatomy.graph.nodes if node.operator in (*CONVOLUTIONS, *PRODUCTS)]
        self.untimed = sorted(
            {node.operator for node in anatomy.graph.nodes if node.operator in COUNTED}
            - {*CONVOLUTIONS, *PRODUCTS}
        )
        """Operators that multiply and whose times are not measured apart."""

    def shapes(self, removed: Removed) -> LayerShapes:
        """By the value that a node computes, its shape without these units."""
        first, second = self._costs.shapes(removed)
        one = {name: _of_one(shape, second[name]) for name, shape in first.items()}
        return {node.value: self._shape(node, one) for node in self._nodes}

    def _shape(self, node: Node, shapes: Shapes) -> LayerShape:
        if node.operator in CONVOLUTIONS:
            return _convolution(node, shapes)
        return _product(node, shapes, self._anatomy.graph.initializers)


def _of_one(first: Shape, second: Shape) -> Shape:
    """A shape at a batch of one: sizes are linear in the batch."""
    slope = BATCHES[1] - BATCHES[0]
    return tuple(
        now - (other - now) // slope * (BATCHES[0] - 1) for now, other in zip(first, second, strict=True)
    )


def _convolution(node: Node, shapes: Shapes) -> LayerShape:
    data, weight, made = (shapes[name] for name in (node.inputs[0], node.inputs[1], node.outputs[0]))
    inner = weight[1]
    if node.operator == "Conv":
        groups = data[1] // inner
        widths = (groups, inner, made[1] // groups)
    else:
        groups = made[1] // inner
        widths = (groups, data[1] // groups, inner)
    rest = {"kernel": _text(weight[2:]), "in": _text(data[2:]), "out": _text(made[2:])}
    for name in ("strides", "pads", "dilations", "output_padding", "output_shape"):
        given = node.integers(name)
        if given:
            rest[name] = _text(given)
    if data[0] != 1:  # a batch that the graph fixes, or windows that are folded into it
        rest["batch"] = str(data[0])
    if node.text("auto_pad", "NOTSET") != "NOTSET":
        rest["auto_pad"] = node.text("auto_pad", "NOTSET")
    if node.input(2):
        rest["bias"] = "1"
    return LayerShape(node.operator, widths, tuple(sorted(rest.items())))


def _product(node: Node, shapes: Shapes, stored: Mapping[str, object]) -> LayerShape:
    left, right = (shapes[name] for name in node.inputs[:2])
    rest = {"stored": "".join(one for one, name in zip("xw", node.inputs, strict=False) if name in stored)}
    turned = {which: bool(node.integer(which, 0)) for which in ("transA", "transB")}
    rest |= {which: "1" for which, on in turned.items() if on}
    if node.input(2):
        rest["bias"] = "1"
    # A vector counts as a matrix of one row, or of one column.
    left = left if len(left) > 1 else (1, *left)
    columns = 1 if len(right) == 1 else right[-2 if turned["transB"] else -1]
    right = right if len(right) > 1 else (*right, 1)
    rows, inner = left[-2:][::-1] if turned["transA"] else left[-2:]
    deep = max(len(left), len(right)) - 2
    whole = ((1,) * (deep - len(left) + 2) + left[:-2], (1,) * (deep - len(right) + 2) + right[:-2])
    stacked = tuple(max(pair) for pair in zip(*whole, strict=True))
    for name, shape in (("left", left), ("right", right)):
        ahead = stacked[deep - len(shape) + 2 :]
        rest[name] = "".join("1" if own == size else "0" for own, size in zip(shape, ahead, strict=False))
    return LayerShape(node.operator, (*stacked, rows, inner, columns), tuple(sorted(rest.items())))


def _text(sizes: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in sizes)
