"""Convolution and pooling: channels are made, read, and passed through."""

from __future__ import annotations

from compression.graphs.graph import Node
from compression.graphs.labels import CONSUMED, ZEROED, Axis
from compression.graphs.rules.table import Analysis, rule


@rule("Conv", "ConvTranspose")
def convolution(analysis: Analysis, node: Node) -> None:
    data, weight = node.inputs[0], node.inputs[1]
    rank = len(analysis.shape(data))
    for axis in analysis.of(data)[2:]:
        analysis.freeze(axis, node, "slides along it")
    groups = node.integer("group", 1)
    # the axes of the weight: channels that are made, channels that are read (of one group)
    made, read = (0, 1) if node.operator == "Conv" else (1, 0)
    if groups == 1:
        analysis.contract(node, [(data, 1), (weight, read)])
        analysis.produce(weight, made)
        channels = analysis.of(weight)[made]
    elif node.operator == "Conv":
        channels = _grouped(analysis, node, groups)
    else:
        channels = _grouped_transposed(analysis, node, groups)
    for axis in analysis.of(weight)[2:]:
        analysis.freeze(axis, node, "slides along it")
    bias = node.input(2)
    if bias:
        channels = analysis.together(node, [channels, analysis.of(bias)[0]])
        if bias in analysis.constants:
            analysis.labels.mark(analysis.of(bias)[0], ZEROED)
    analysis.put(node, [analysis.of(data)[0], channels] + [None] * (rank - 2))


def _grouped(analysis: Analysis, node: Node, groups: int) -> Axis:
    """Of a grouped convolution either whole groups go (the first way) or the same channels of every group."""
    data, weight = node.inputs[0], node.inputs[1]
    read, made = analysis.of(data)[1], analysis.of(weight)[0]
    inside = analysis.of(weight)[1]
    labels = analysis.labels
    if made is None:
        analysis.freeze(read, node, "reads it in groups")
        return None
    if read is not None and inside is None:  # depthwise: a channel is a group
        labels.join(read[:, None], made.reshape(groups, -1))
        analysis.produce(weight, 0)
        return made
    analysis.produce(weight, 0)
    way = analysis.choose(node, 2) if read is not None else 1
    if way == 0:
        assert read is not None
        whole = read.reshape(groups, -1)
        labels.join(whole[:, :1], whole)
        labels.join(whole[:, :1], made.reshape(groups, -1))
        analysis.freeze(inside, node, "reads it in groups that go whole")
    else:
        columns = made.reshape(groups, -1)
        labels.join(columns[:1], columns)
        analysis.together(node, [None if read is None else read.reshape(groups, -1)[0], inside])
        if read is not None:
            rows = read.reshape(groups, -1)
            labels.join(rows[:1], rows)
            if weight in analysis.constants:
                labels.mark(inside, CONSUMED)
            else:
                analysis.contractions.append((data, 1))
    if read is not None:
        analysis.decide(node, 2, made)
    return made


def _grouped_transposed(analysis: Analysis, node: Node, groups: int) -> Axis:
    """Weight [channels read, channels made of a group]: whole groups go where each makes one channel."""
    data, weight = node.inputs[0], node.inputs[1]
    read, rows, made = analysis.of(data)[1], analysis.of(weight)[0], analysis.of(weight)[1]
    joined = analysis.together(node, [read, rows])
    if joined is None or analysis.shape(weight)[1] != 1:
        for axis in (read, rows, made):
            analysis.freeze(axis, node, "reads and makes it in groups")
        return None
    whole = joined.reshape(groups, -1)
    analysis.labels.join(whole[:, :1], whole)
    analysis.produce(weight, 0)
    return whole[:, 0]


@rule("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool")
def pooling(analysis: Analysis, node: Node) -> None:
    axes = analysis.of(node.inputs[0])
    for axis in axes[2:]:
        analysis.freeze(axis, node, "pools along it")
    analysis.put(node, [*axes[:2], *[None] * (len(axes) - 2)])
