"""Normalisation, softmax and reductions: an axis that is normalised over stays whole."""

from __future__ import annotations

from compression.graphs.graph import Node
from compression.graphs.labels import ZEROED
from compression.graphs.operators.reduction import reduced_axes
from compression.graphs.rules.table import Analysis, known_integers, rule

SUMS = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSumSquare"}
"""Reductions to which an element that is zero adds nothing. A mean goes on dividing by what there was (see
`rewriting.py`)."""


def sums(node: Node, nonnegative: frozenset[str]) -> bool:
    """Whether zeros change nothing of a reduction: a sum, or a maximum of what is never negative."""
    return node.operator in SUMS or (node.operator == "ReduceMax" and node.inputs[0] in nonnegative)


@rule("BatchNormalization", "InstanceNormalization")
def by_channel(analysis: Analysis, node: Node) -> None:
    axes = list(analysis.of(node.inputs[0]))
    for name in node.inputs[1:]:
        axes[1] = analysis.together(node, [axes[1], analysis.of(name)[0]])
    for name in node.inputs[1:3]:  # a variance of zero would be another matter
        if name in analysis.constants:
            analysis.labels.mark(analysis.of(name)[0], ZEROED)
    for place in range(2, len(axes)):
        if node.operator == "InstanceNormalization":
            analysis.freeze(axes[place], node, "normalises over it")
            axes[place] = None
    analysis.put(node, axes)


@rule("GroupNormalization")
def by_group(analysis: Analysis, node: Node) -> None:
    """Whole groups go: what is left of a group would be normalised by other statistics."""
    axes = analysis.of(node.inputs[0])
    groups, channels = node.integer("num_groups", 1), axes[1]
    for axis in axes[2:]:
        analysis.freeze(axis, node, "normalises over it")
    for name in node.inputs[1:]:
        weights = analysis.of(name)[0]
        if channels is None or weights is None or groups == 1:
            analysis.freeze(weights, node, "normalises over it")
        else:
            rows = channels.reshape(groups, -1)
            analysis.labels.join(rows, weights.reshape(groups, -1))
            analysis.labels.mark(weights, ZEROED if name in analysis.constants else 0)
    if channels is not None and groups == 1:
        analysis.freeze(channels, node, "normalises over it")
    elif channels is not None:
        rows = channels.reshape(groups, -1)
        analysis.labels.join(rows[:, :1], rows)
    analysis.put(node, [*axes[:2], *[None] * (len(axes) - 2)])


@rule("LayerNormalization")
def by_layer(analysis: Analysis, node: Node) -> None:
    axes = analysis.of(node.inputs[0])
    first = node.integer("axis", -1) % len(axes)
    over = [*axes[first:], *(axis for name in node.inputs[1:] if name for axis in analysis.of(name))]
    for axis in over:
        analysis.freeze(axis, node, "normalises over it")
    analysis.put(node, [*axes[:first], *[None] * (len(axes) - first)])


@rule("Softmax", "LogSoftmax", "Hardmax", "LpNormalization", "LRN", "TopK", "CumSum", "ArgMax", "ArgMin")
def along_an_axis(analysis: Analysis, node: Node) -> None:
    axes = list(analysis.of(node.inputs[0]))
    default = 0 if node.operator.startswith("Arg") else -1
    axis = 1 if node.operator == "LRN" else node.integer("axis", default)
    if node.operator == "CumSum":
        known = known_integers(analysis, node, 1)
        if not known or known[0] is None:
            return analysis.freeze_all(node, "sums along an axis that varies")
        axis = known[0]
    axis %= len(axes)
    analysis.freeze(axes[axis], node, "compares its elements with each other")
    axes[axis] = None
    for place, name in enumerate(node.outputs):
        if name:
            rank = len(analysis.shape(name))
            made = axes if rank == len(axes) else axes[:axis] + axes[axis + 1 :]
            analysis.put(node, made, place)
    return None


@rule("MeanVarianceNormalization")
def over_axes(analysis: Analysis, node: Node) -> None:
    axes = list(analysis.of(node.inputs[0]))
    for axis in node.integers("axes") or (0, 2, 3):
        analysis.freeze(axes[axis], node, "normalises over it")
        axes[axis] = None
    analysis.put(node, axes)


@rule(*SUMS, "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd")
def reduction(analysis: Analysis, node: Node) -> None:
    """Sums and means stay what they are without zeros. A mean of squares is a norm's, written out: it
    keeps its axis, as norms do."""
    data = node.inputs[0]
    axes = analysis.of(data)
    listed = known_integers(analysis, node, 1)
    if listed is not None and None in listed:
        return analysis.freeze_all(node, "reduces axes that vary")
    numbers = None if listed is None else [one for one in listed if one is not None]
    over = reduced_axes(node, numbers, len(axes))
    for axis in over:
        if axes[axis] is None:
            continue
        if node.operator == "ReduceMean" and analysis.squared(data):
            analysis.freeze(axes[axis], node, "is the mean of squares, as of a norm over it")
        elif sums(node, analysis.nonnegative):
            analysis.contract(node, [(data, axis)])
        else:
            analysis.freeze(axes[axis], node, "reduces it")
    if node.integer("keepdims", 1):
        analysis.put(node, [None if place in over else axis for place, axis in enumerate(axes)])
    else:
        analysis.put(node, [axis for place, axis in enumerate(axes) if place not in over])
    return None
