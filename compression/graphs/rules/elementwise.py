"""Operators that work element by element, with broadcasting."""

from __future__ import annotations

from compression.graphs.graph import Node
from compression.graphs.labels import ZEROED
from compression.graphs.operators.elementwise import BINARY, UNARY, VARIADIC
from compression.graphs.rules.table import Analysis, rule

OTHERS = (
    "Cast", "CastLike", "Celu", "Clip", "Div", "Dropout", "Elu", "Gelu", "HardSigmoid", "IsInf", "LeakyRelu",
    "Mean", "Mod", "PRelu", "Pow", "Selu", "Shrink", "ThresholdedRelu", "Where",
)  # fmt: skip
FIRST_ONLY = {"CastLike", "Clip", "Dropout"}


@rule(*UNARY, *BINARY, *VARIADIC, *OTHERS)
def elementwise(analysis: Analysis, node: Node) -> None:
    """Axes that meet are tied; an axis of one element is stretched and ties nothing."""
    shape = analysis.shape(node.outputs[0])
    names = [name for name in node.inputs if name]
    if node.operator in FIRST_ONLY:
        names = names[:1]
    made = []
    for axis, size in enumerate(shape):
        met = []
        for name in names:
            place = axis - len(shape) + len(analysis.shape(name))
            if place >= 0 and analysis.shape(name)[place] == size and size > 1:
                met.append(analysis.of(name)[place])
        made.append(analysis.together(node, met))
    if node.operator in {"Add", "Mul", "Sub"} and not all(name in analysis.derived for name in names):
        _mark_constants(analysis, node)
    for place in range(len(node.outputs)):
        analysis.put(node, made, place)


def _mark_constants(analysis: Analysis, node: Node) -> None:
    """A constant that is added or multiplied may be zeroed with its unit."""
    for name in node.inputs:
        if name in analysis.constants:
            for axis in analysis.of(name):
                analysis.labels.mark(axis, ZEROED)
